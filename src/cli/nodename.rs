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
    replace(&full, &[('h', host), ('n', short), ('d', domain), ('i', ""), ('I', "")])
}

/// Expands a path as Celery does for log files and pidfiles: `%n` the first part of the node name, `%p` all of it, `%h`
/// its host, `%d` the domain of that, `%i` the number of a child process, 0 here.
pub(super) fn expand_path(path: &str, node: &str) -> String {
    let (name, host) = node.split_once('@').unwrap_or((node, ""));
    let domain = host.split_once('.').map_or("", |(_, domain)| domain);
    replace(
        path,
        &[
            ('h', host),
            ('n', name),
            ('d', domain),
            ('p', node),
            ('i', "0"),
            ('I', ""),
        ],
    )
}

fn replace(text: &str, values: &[(char, &str)]) -> String {
    let (mut out, mut chars) = (String::new(), text.chars());
    while let Some(char) = chars.next() {
        if char != '%' {
            out.push(char);
            continue;
        }
        match chars.next() {
            Some('%') | None => out.push('%'),
            Some(letter) => match values.iter().find(|(known, _)| *known == letter) {
                Some((_, value)) => out.push_str(value),
                None => out.extend(['%', letter]),
            },
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
    use super::{expand, expand_path};

    #[test]
    fn p_200_node_names_expand_as_celerys() {
        assert_eq!(expand("celery", "box.example.com"), "celery@box.example.com");
        assert_eq!(expand("w1@%n", "box.example.com"), "w1@box");
        assert_eq!(expand("w1@%d", "box.example.com"), "w1@example.com");
        assert_eq!(expand("w%%1@%h", "box"), "w%1@box");
        assert_eq!(expand_path("/run/%n.pid", "w1@box.example.com"), "/run/w1.pid");
        assert_eq!(expand_path("%h-%d%I.%x", "w1@box.org"), "box.org-org.%x");
    }
}
