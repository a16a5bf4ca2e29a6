//! Compressed bodies (`kombu.compression`). The output is bounded while it is produced, so that a small message
//! cannot fill the memory.

use std::io::Read;

use super::message::DecodeError;

/// Undoes the compression named by the `compression` header.
///
/// `method` is a mime type or one of kombu's aliases. What kombu calls gzip is a zlib stream (trap T12).
///
/// # Errors
/// An unknown method, a corrupt stream, or more than `limit` bytes of output.
pub fn decompress(method: &str, data: &[u8], limit: usize) -> Result<Vec<u8>, DecodeError> {
    match method {
        "application/x-gzip" | "gzip" | "zlib" => bounded(flate2::read::ZlibDecoder::new(data), limit),
        other => Err(DecodeError::Body(format!(
            "compression {other:?} is not supported; use gzip or zlib"
        ))),
    }
}

fn bounded(reader: impl Read, limit: usize) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::new();
    reader
        .take(limit as u64 + 1)
        .read_to_end(&mut out)
        .map_err(|error| DecodeError::Body(format!("corrupt compressed body: {error}")))?;
    if out.len() > limit {
        return Err(DecodeError::TooLarge { what: "body", limit });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn p_067_a_gzip_body_is_a_zlib_stream_and_a_bomb_is_refused() {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&vec![b'x'; 100_000]).unwrap();
        let packed = encoder.finish().unwrap();
        assert_eq!(decompress("gzip", &packed, 100_000).unwrap().len(), 100_000);
        assert!(matches!(
            decompress("application/x-gzip", &packed, 99_999),
            Err(DecodeError::TooLarge { .. })
        ));
        assert!(decompress("gzip", b"garbage", 10).is_err());
        assert!(decompress("application/x-nope", &packed, 10).is_err());
    }
}
