//! Node names (`celery.utils.nodenames`).

/// Expands a node name as Celery does: `%h` the whole host name, `%n` its first part, `%d` the rest, `%%` a percent
/// sign, `%i` and `%I` nothing (there are no child processes); without `@` the host is appended.
pub(super) fn expand(name: &str, host: &str) -> String {
    let (short, domain) = host.split_once('.').unwrap_or((host, ""));
    let full = if name.contains('@') {
        name.to_owned()
    } else {
        format!("{name}@%h")
    };
    let (mut out, mut chars) = (String::new(), full.chars());
    while let Some(char) = chars.next() {
        if char != '%' {
            out.push(char);
            continue;
        }
        match chars.next() {
            Some('h') => out.push_str(host),
            Some('n') => out.push_str(short),
            Some('d') => out.push_str(domain),
            Some('i' | 'I') => {}
            Some('%') | None => out.push('%'),
            Some(other) => {
                out.push('%');
                out.push(other);
            }
        }
    }
    out
}

/// This machine's name.
pub(super) fn host() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn p_200_node_names_expand_as_celerys() {
        assert_eq!(expand("celery", "box.example.com"), "celery@box.example.com");
        assert_eq!(expand("w1@%n", "box.example.com"), "w1@box");
        assert_eq!(expand("w1@%d", "box.example.com"), "w1@example.com");
        assert_eq!(expand("w%%1@%h", "box"), "w%1@box");
    }
}
