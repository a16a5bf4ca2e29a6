//! Base64 with padding, as bodies of messages have it; by the vector instructions of the processor where there are
//! some. Of a large message it was half of what decoding costs.

use std::sync::LazyLock;

use base64::DecodeError;
use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurposeConfig, PAD};

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
type Best = base64::engine::Simd;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type Best = base64::engine::GeneralPurpose;

static ENGINE: LazyLock<Best> = LazyLock::new(|| make(PAD));

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn make(config: GeneralPurposeConfig) -> Best {
    Best::standard(config)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn make(config: GeneralPurposeConfig) -> Best {
    Best::new(&base64::alphabet::STANDARD, config)
}

/// The bytes that a text stands for.
///
/// # Errors
/// It is not base64.
pub(super) fn decode(text: impl AsRef<[u8]>) -> Result<Vec<u8>, DecodeError> {
    ENGINE.decode(text)
}

/// The text for bytes.
pub(super) fn encode(bytes: impl AsRef<[u8]>) -> String {
    ENGINE.encode(bytes)
}

/// Appends the text for bytes.
pub(super) fn encode_to(bytes: impl AsRef<[u8]>, text: &mut String) {
    ENGINE.encode_string(bytes, text);
}
