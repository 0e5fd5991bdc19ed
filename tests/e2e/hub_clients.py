"""Run by hub_test.py in a Python that has the real huggingface_hub, transformers and peft:

    hub_clients.py cache REPOSITORY         download from HF_ENDPOINT; print the cache's files as JSON
    hub_clients.py offline REPOSITORY       the snapshot's path, from the cache alone
    hub_clients.py models BASE DERIVATIVE BASE_DIR DERIVATIVE_DIR
                                            load both from HF_ENDPOINT; compare with the directories
    hub_clients.py push FOLDER REPOSITORY   upload_folder
"""

import hashlib
import json
import os
import pathlib
import sys


def cache_files():
    root = pathlib.Path(os.environ["HF_HUB_CACHE"])
    files = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            files[name] = "-> " + os.readlink(path)
        elif path.is_file() and "/blobs/" in name:
            files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.is_file() and "/refs/" in name:
            files[name] = path.read_text()
    return files


def cache(repository):
    from huggingface_hub import snapshot_download
    snapshot_download(repository)
    print(json.dumps(cache_files()))


def offline(repository):
    from huggingface_hub import snapshot_download
    print(json.dumps(snapshot_download(repository, local_files_only=True)))


def models(base_name, derivative_name, base_directory, derivative_directory):
    import huggingface_hub
    import torch
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import (EntryNotFoundError, RepositoryNotFoundError,
                                        RevisionNotFoundError)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.arange(3, 40).reshape(1, -1)

    def logits(base, adapter):
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
        with torch.no_grad():
            return model(ids).logits

    ours = logits(base_name, derivative_name)
    difference = (ours - logits(base_directory, derivative_directory)).abs().max().item()
    merged = AutoModelForCausalLM.from_pretrained(derivative_name + "-merged", dtype=torch.float32)
    with torch.no_grad():
        merged_difference = (ours - merged(ids).logits).abs().max().item()

    api = HfApi()
    info = api.model_info(derivative_name, files_metadata=True)
    again = snapshot_download(derivative_name, revision=info.sha)
    same = all(path.read_bytes() == (pathlib.Path(again) / path.relative_to(derivative_directory)).read_bytes()
               for path in pathlib.Path(derivative_directory).rglob("*") if path.is_file())
    refused = {}
    for name, call in {
            "repository": lambda: snapshot_download("nobody/nothing"),
            "revision": lambda: hf_hub_download(derivative_name, "offshoot.json", revision="v9"),
            "entry": lambda: hf_hub_download(derivative_name, "no_such.json")}.items():
        try:
            call()
        except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
            refused[name] = type(error).__name__
    print(json.dumps({"difference": difference, "merged_difference": merged_difference, "same": same,
                      "sha": info.sha, "refused": refused,
                      "files": sorted(sibling.rfilename for sibling in info.siblings),
                      "client": huggingface_hub.__version__}))


def push(folder, repository):
    from huggingface_hub import HfApi
    api = HfApi()
    api.create_repo(repository, exist_ok=True)
    print(json.dumps(api.upload_folder(folder_path=folder, repo_id=repository).oid))


if __name__ == "__main__":
    {"cache": cache, "offline": offline, "models": models, "push": push}[sys.argv[1]](*sys.argv[2:])
