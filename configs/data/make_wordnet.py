#!/usr/bin/env python3
"""Makes wordnet_nouns.jsonl: questions for the meaning of common English nouns, and WordNet's glosses.

    sudo apt-get install wordnet-base
    python3 configs/data/make_wordnet.py > configs/data/wordnet_nouns.jsonl

A noun is taken with its first (most frequent) sense if a corpus has it tagged at all; of a gloss only
the definition is kept, without the examples. Each word and each gloss occurs once. The same WordNet
gives the same file.
"""

import json
import random
import sys

ROWS = 1500
SEED = 3
SHORTEST, LONGEST = 20, 110  # characters of a gloss


def read_glosses(path):
    """Byte offset of a synset -> its words and its definition."""
    glosses = {}
    with open(path, encoding="latin-1") as lines:
        for line in lines:
            if line.startswith(" ") or " | " not in line:
                continue  # the licence at the top
            fields, gloss = line.split(" | ", 1)
            definition = gloss.split('; "')[0].strip().rstrip(";")
            offset, _, _, count, *rest = fields.split()
            glosses[offset] = rest[: 2 * int(count, 16) : 2], definition
    return glosses


def read_nouns(path):
    """(word, offset of its first synset) of every noun that is tagged in a corpus."""
    with open(path, encoding="latin-1") as lines:
        for line in lines:
            if line.startswith(" "):
                continue
            fields = line.split()
            senses = int(fields[2])
            tagged = int(fields[-senses - 1])
            if tagged > 0 and fields[0].replace("_", "").isalpha():
                yield fields[0].replace("_", " "), fields[-senses]


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else "/usr/share/wordnet"
    glosses = read_glosses(f"{folder}/data.noun")
    rows, seen = [], set()
    for word, offset in sorted(read_nouns(f"{folder}/index.noun")):
        words, gloss = glosses[offset]
        if word.replace(" ", "_") not in words:
            continue  # a proper noun: only the index has it in small letters
        if gloss in seen or '"' in gloss or not SHORTEST <= len(gloss) <= LONGEST:
            continue
        seen.add(gloss)
        rows.append((word, gloss))
    for word, gloss in random.Random(SEED).sample(rows, ROWS):
        messages = [
            {"role": "user", "content": f"Define the noun '{word}'."},
            {"role": "assistant", "content": gloss},
        ]
        print(json.dumps({"messages": messages}))


if __name__ == "__main__":
    main()
