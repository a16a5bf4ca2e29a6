//! Small helpers for messages to people.

/// How many single-character changes lie between two words (Levenshtein).
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The closest of `names`, for "did you mean …?".
pub(crate) fn closest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, name) = names.into_iter().map(|name| (distance(word, name), name)).min()?;
    (distance <= 2.max(word.chars().count() / 3)).then_some(name)
}

/// `1 row`, `2 rows`: a number of something in words.
pub(crate) fn count(number: impl std::fmt::Display, one: &str) -> String {
    let number = number.to_string();
    let s = if number == "1" { "" } else { "s" };
    format!("{number} {one}{s}")
}

/// A number that somebody gave, in as few digits as it has: `5`, `0.5`, `1e300`.
pub(crate) fn number(number: f64) -> String {
    if number.abs() < 1e15 {
        number.to_string()
    } else {
        format!("{number:e}")
    }
}

/// Several causes in one line: a question ends by itself, the others with a semicolon.
pub(crate) fn sentences(causes: &[String]) -> String {
    let mut text = String::new();
    for cause in causes {
        let before = match text.chars().last() {
            None => "",
            Some('?' | '.') => " ",
            Some(_) => "; ",
        };
        text.push_str(before);
        text.push_str(cause);
    }
    text
}

/// Whether a text fits a pattern in which `*` stands for any characters.
pub(crate) fn fits(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut left) = text.strip_prefix(start) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit() {
        for (pattern, text) in [
            ("*", ""),
            ("a", "a"),
            ("a*", "ab"),
            ("*b", "ab"),
            ("a*c*e", "abcde"),
            ("a*a", "aba"),
        ] {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("", "a"), ("a*", "ba"), ("a*a", "a"), ("a*c*e", "aec")] {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn numbers_and_causes_are_words() {
        assert_eq!([0, 1, 2].map(|rows| count(rows, "row")), ["0 rows", "1 row", "2 rows"]);
        let causes = ["no a; did you mean b?", "c is missing", "d is too"].map(str::to_owned);
        assert_eq!(sentences(&causes), "no a; did you mean b? c is missing; d is too");
        assert_eq!(sentences(&[]), "");
    }

    #[test]
    fn distances_count_changes() {
        for (a, b, expected) in [
            ("", "", 0),
            ("a", "", 1),
            ("kitten", "sitting", 3),
            ("broker_urls", "broker_url", 1),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
        assert_eq!(closest("lenght", ["length", "words"]), Some("length"));
        assert_eq!(closest("zzzzz", ["length", "words"]), None);
    }
}
