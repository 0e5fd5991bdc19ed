//! SHA-256, written as Offshoot writes digests: "sha256:<hex>".

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::pipeline::Result;

const CHUNK_BYTES: usize = 1 << 20;

pub fn of_bytes(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

pub fn of_file(path: &Path) -> Result<String> {
    let fail = |e: std::io::Error| format!("{} cannot be read: {e}", path.display());
    let mut file = File::open(path).map_err(fail)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = file.read(&mut chunk).map_err(fail)?;
        if count == 0 {
            return Ok(format!("sha256:{:x}", hash.finalize()));
        }
        hash.update(&chunk[..count]);
    }
}
