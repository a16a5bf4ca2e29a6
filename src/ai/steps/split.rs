//! Splits a text into pieces of at most so many tokens, at the best places there are: between paragraphs, lines,
//! sentences, words. Ollama has no endpoint that counts tokens, so they are reckoned from bytes, and the reckoning is
//! corrected by what the model counted.

/// Bytes of a token before a model has counted any: on the safe side for prose, and for most other texts.
pub(super) const BYTES_PER_TOKEN: f64 = 3.0;
/// Bounds on what is learnt.
const PLAUSIBLE: std::ops::RangeInclusive<f64> = 1.0..=6.0;

/// Places to cut, best first.
const PLACES: [&str; 7] = ["\n\n", "\n", ". ", "! ", "? ", "; ", " "];

/// Tokens of a text.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate"
)]
pub(super) fn tokens(text: &str, ratio: f64) -> usize {
    (text.len() as f64 / ratio).ceil() as usize
}

/// What a count teaches: bytes of a token, a little on the safe side.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
pub(super) fn learn(bytes: usize, counted: u64) -> Option<f64> {
    let ratio = bytes as f64 / counted.max(1) as f64 * 0.95;
    (bytes > 500 && PLAUSIBLE.contains(&ratio)).then_some(ratio)
}

/// The pieces of a text, in order; each but the first begins with the last `overlap` tokens of the one before.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate"
)]
pub(super) fn split(text: &str, most: usize, overlap: usize, ratio: f64) -> Vec<String> {
    let size = ((most as f64 * ratio) as usize).max(16);
    let overlap = ((overlap as f64 * ratio) as usize).min(size / 2);
    let mut pieces = Vec::new();
    let mut start = 0;
    while start < text.len() {
        let end = cut(text, start, size);
        let piece = text[start..end].trim();
        if !piece.is_empty() {
            pieces.push(piece.to_owned());
        }
        if end >= text.len() {
            break;
        }
        let back = boundary(text, end.saturating_sub(overlap));
        // Forward in any case.
        start = if overlap > 0 && back > start {
            word_start(text, back, end)
        } else {
            end
        };
    }
    pieces
}

/// Where the piece from `start` ends: the last good place in its second half.
fn cut(text: &str, start: usize, size: usize) -> usize {
    if text.len() - start <= size {
        return text.len();
    }
    let end = boundary(text, start + size).max(next(text, start));
    let half = boundary(text, start + size / 2);
    let window = &text[half.min(end)..end];
    for place in PLACES {
        if let Some(at) = window.rfind(place) {
            return half + at + place.len();
        }
    }
    end
}

/// The beginning of the first word from `at` on.
fn word_start(text: &str, at: usize, end: usize) -> usize {
    let space = text[at..end].find(char::is_whitespace);
    space.map_or(at, |space| at + space)
}

/// The nearest place at or before `at` that is between two characters.
fn boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn next(text: &str, at: usize) -> usize {
    at + text[at..].chars().next().map_or(0, char::len_utf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_text_and_small_enough() {
        let text: String = (0..500)
            .map(|n| format!("Sentence number {n} is here. {}", if n % 7 == 0 { "\n\n" } else { "" }))
            .collect();
        for most in [20, 50, 1000] {
            let pieces = split(&text, most, 0, 3.0);
            assert!(pieces.iter().all(|piece| piece.len() <= most * 3), "{most}");
            let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert_eq!(squeeze(&pieces.join(" ")), squeeze(&text));
        }
        assert_eq!(split("short", 100, 10, 3.0), ["short"]);
        assert!(split("   ", 100, 0, 3.0).is_empty());
    }

    #[test]
    fn pieces_overlap_and_go_forward() {
        let text = "one two three four five six seven eight nine ten ".repeat(20);
        let pieces = split(&text, 30, 10, 3.0);
        assert!(pieces.len() > 10);
        let words: Vec<&str> = pieces[0].split_whitespace().collect();
        assert!(
            pieces[1].starts_with(words[words.len() - 3])
                || pieces[0].contains(pieces[1].split_whitespace().next().unwrap())
        );
        let without = "日本語".repeat(500);
        assert_eq!(split(&without, 50, 0, 3.0).concat(), without);
        assert!(split(&without, 5, 2, 1.0).len() < 2000);
    }

    #[test]
    fn what_a_model_counted_is_learnt_from() {
        assert!((learn(4000, 1000).unwrap() - 3.8).abs() < 1e-9);
        assert_eq!(learn(100, 50), None);
        assert_eq!(learn(100_000, 10), None);
    }
}
