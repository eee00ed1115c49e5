//! Files that are read line by line, whatever they are compressed with.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::Context;
use flate2::read::MultiGzDecoder;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Opens plain, gzip or zstd by what is inside, not by the name; `-` is standard input.
pub fn open(path: &Path) -> anyhow::Result<Box<dyn BufRead>> {
    let raw: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?)
    };
    let mut raw = BufReader::new(raw);
    let head = raw.fill_buf().with_context(|| format!("cannot read {}", path.display()))?;
    if head.starts_with(&ZSTD_MAGIC) {
        return Ok(Box::new(BufReader::new(zstd::stream::read::Decoder::with_buffer(raw)?)));
    }
    if head.starts_with(&GZIP_MAGIC) {
        return Ok(Box::new(BufReader::new(MultiGzDecoder::new(raw))));
    }
    Ok(Box::new(raw))
}
