//! Compressed bodies and results (`kombu.compression`). The output is bounded while it is produced, and so is the
//! memory that a stream may ask for, so that a small message cannot fill the memory.

use std::io::{self, Read, Write};

use super::message::DecodeError;

/// A method that kombu registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// What kombu calls gzip: a zlib stream.
    Gzip,
    /// bzip2.
    Bzip2,
    /// The .xz container.
    Lzma,
    /// Brotli.
    Brotli,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// Each with its mime type, which messages and results carry, and kombu's other names for it.
    const ALL: [(Self, [&str; 3]); 5] = [
        (Self::Gzip, ["application/x-gzip", "gzip", "zlib"]),
        (Self::Bzip2, ["application/x-bz2", "bzip2", "bzip"]),
        (Self::Lzma, ["application/x-lzma", "lzma", "xz"]),
        (Self::Brotli, ["application/x-brotli", "brotli", "brotli"]),
        (Self::Zstd, ["application/zstd", "zstd", "zstandard"]),
    ];

    /// By a name or mime type of kombu's.
    ///
    /// # Errors
    /// There is no such method.
    pub fn parse(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|(_, names)| names.contains(&name));
        found.map(|(method, _)| method).ok_or_else(|| {
            format!("compression {name:?} is not known; known are gzip (zlib), bzip2, lzma (xz), brotli and zstd")
        })
    }

    /// Its mime type.
    pub fn content_type(self) -> &'static str {
        let own = Self::ALL.into_iter().find(|(method, _)| *method == self);
        own.map_or("", |(_, names)| names[0])
    }

    /// The data, compressed, at the level that kombu uses; Brotli at a quicker one, whose output any decoder reads.
    ///
    /// # Errors
    /// None that a writer to memory has; they are passed on all the same.
    pub fn compress(self, data: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip => {
                let mut writer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
                writer.write_all(data)?;
                writer.finish()
            }
            Self::Bzip2 => {
                let mut writer = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
                writer.write_all(data)?;
                writer.finish()
            }
            Self::Lzma => {
                let options = lzma_rust2::XzOptions::with_preset(6);
                let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options)?;
                writer.write_all(data)?;
                writer.finish()
            }
            Self::Brotli => {
                let mut out = Vec::new();
                let parameters = brotli::enc::BrotliEncoderParams {
                    quality: BROTLI_QUALITY,
                    ..Default::default()
                };
                brotli::BrotliCompress(&mut &*data, &mut out, &parameters)?;
                Ok(out)
            }
            Self::Zstd => Ok(ruzstd::encoding::compress_to_vec(
                data,
                ruzstd::encoding::CompressionLevel::Fastest,
            )),
        }
    }
}

/// Of 11, where the last two take a hundred times as long for a few per cent.
const BROTLI_QUALITY: i32 = 5;

/// The window that zstd wants every decoder to have; a larger one is only of use to a larger body.
const ZSTD_WINDOW: u64 = 8 << 20;
/// Enough for every preset of xz (64 MiB of dictionary at most), in KiB.
const XZ_MEMORY: u32 = 80 << 10;

/// Undoes the compression named by the `compression` header.
///
/// `method` is a mime type or one of kombu's aliases. What kombu calls gzip is a zlib stream.
///
/// # Errors
/// An unknown method, a corrupt stream, or more than `limit` bytes of output.
pub fn decompress(method: &str, data: &[u8], limit: usize) -> Result<Vec<u8>, DecodeError> {
    match Compression::parse(method).map_err(DecodeError::Body)? {
        Compression::Gzip => bounded(flate2::read::ZlibDecoder::new(data), limit),
        Compression::Bzip2 => bounded(bzip2::read::BzDecoder::new(data), limit),
        Compression::Lzma => bounded(lzma_rust2::XzReader::new_mem_limit(data, true, XZ_MEMORY), limit),
        Compression::Brotli => bounded(brotli::Decompressor::new(data, 8 << 10), limit),
        Compression::Zstd => {
            // A frame that was made in one piece names its whole size as its window.
            let window = ZSTD_WINDOW.max(limit as u64);
            let decoder = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(data, window);
            bounded(decoder.map_err(corrupt)?, limit)
        }
    }
}

fn bounded(reader: impl Read, limit: usize) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::new();
    reader
        .take((limit as u64).saturating_add(1))
        .read_to_end(&mut out)
        .map_err(corrupt)?;
    if out.len() > limit {
        return Err(DecodeError::TooLarge { what: "body", limit });
    }
    Ok(out)
}

fn corrupt(error: impl std::fmt::Display) -> DecodeError {
    DecodeError::Body(format!("corrupt compressed body: {error}"))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;

    /// What kombu 5.7's `compress` makes of 100,000 times `x`, for each of its methods.
    const PACKED: [(&[&str], &str); 4] = [
        (
            &["application/x-bz2", "bzip2", "bzip"],
            "QlpoOTFBWSZTWX4sKXsAAMYQgIQAAEAACCAAMMwFKacYQtgQvF3JFOFCQfiwpew=",
        ),
        (
            &["application/x-lzma", "lzma", "xz"],
            "/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj4YafAFNdADxv+7/+o7Fe5fg/sqomVfhocEFwFQ+N/R5MG4pCtxn0aRhxrmYjiopNL6MN2X+m44wjEVPgWRjFdYrid/i2lH8MasDedElk4ulcU7IE1rH1lwAAAACWzLMHSxLeVQABb6CNBgAAkORuUbHEZ/sCAAAAAARZWg==",
        ),
        (&["application/x-brotli", "brotli"], "W5+GgV8CLx4LBLL8AgA="),
        (
            &["application/zstd", "zstd", "zstandard"],
            "KLUv/aCghgEAVQAAEHh4AQCbhjnAAg==",
        ),
    ];

    fn packed() -> Vec<(&'static [&'static str], Vec<u8>)> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&vec![b'x'; 100_000]).unwrap();
        let zlib: &[&str] = &["application/x-gzip", "gzip", "zlib"];
        let mut all = vec![(zlib, encoder.finish().unwrap())];
        for (names, text) in PACKED {
            all.push((names, base64::engine::general_purpose::STANDARD.decode(text).unwrap()));
        }
        all
    }

    #[test]
    fn p_067_every_method_of_kombu_is_read_and_a_bomb_is_refused() {
        for (names, packed) in packed() {
            for name in names {
                assert_eq!(
                    decompress(name, &packed, 100_000).unwrap(),
                    vec![b'x'; 100_000],
                    "{name}"
                );
                let bomb = decompress(name, &packed, 99_999);
                assert!(matches!(bomb, Err(DecodeError::TooLarge { .. })), "{name}: {bomb:?}");
                assert!(decompress(name, b"garbage", 10).is_err(), "{name}");
                assert!(decompress(name, b"", 10).is_err(), "{name}");
            }
        }
        assert!(decompress("application/x-nope", b"", 10).is_err());
    }

    #[test]
    fn p_153_what_is_compressed_is_read_back() {
        let text = "some text, some more text, and the same text again\n".repeat(1000);
        for (method, names) in Compression::ALL {
            for data in [text.as_bytes(), b"", b"x"] {
                let packed = method.compress(data).unwrap();
                assert_eq!(decompress(names[0], &packed, text.len()).unwrap(), data, "{method:?}");
            }
            assert!(
                method.compress(text.as_bytes()).unwrap().len() < text.len() / 10,
                "{method:?}"
            );
        }
    }

    /// Whatever arrives, there is an answer: no panic, and never more than the limit.
    #[test]
    fn p_067_a_spoiled_stream_is_an_error_or_is_bounded() {
        use rand::{RngExt as _, SeedableRng as _};
        let mut random = rand::rngs::StdRng::seed_from_u64(67);
        for (names, packed) in packed() {
            for _ in 0..500 {
                let mut spoiled = packed.clone();
                for _ in 0..random.random_range(1..4) {
                    let at = random.random_range(0..spoiled.len());
                    spoiled[at] = random.random();
                }
                spoiled.truncate(random.random_range(0..=spoiled.len()));
                if let Ok(out) = decompress(names[0], &spoiled, 100_000) {
                    assert!(out.len() <= 100_000);
                }
            }
        }
    }

    /// A window or dictionary of gigabytes is refused before it is allocated.
    #[test]
    fn p_067_a_stream_that_asks_for_much_memory_is_refused() {
        // A zstd frame with a window of 2^41 bytes.
        let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 31 << 3, 0x01, 0x00, 0x00];
        assert!(decompress("zstd", &zstd, 100_000).is_err());
    }
}
