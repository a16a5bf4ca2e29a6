//! Which queue a task goes to, by its name (`task_routes`).

/// Queues by task name. An exact name wins; of patterns in which `*` stands for anything, the longest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    routes: Vec<(String, String)>,
}

impl Routes {
    /// From names or patterns, and queues.
    pub fn new(routes: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut routes: Vec<(String, String)> = routes.into_iter().collect();
        routes.sort_by_key(|(pattern, _)| (pattern.contains('*'), std::cmp::Reverse(pattern.len())));
        Self { routes }
    }

    /// The queue of a task; `None` when no route names it.
    pub fn queue(&self, task: &str) -> Option<&str> {
        let found = self.routes.iter().find(|(pattern, _)| fits(task, pattern));
        found.map(|(_, queue)| queue.as_str())
    }
}

/// Whether a name fits a pattern. Each `*` takes as little as it can, so that no pattern costs more than one pass.
fn fits(name: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_routed_by_itself_or_by_the_longest_pattern() {
        let routes = [
            ("feed.*", "feeds"),
            ("feed.import.*", "slow"),
            ("feed.import.now", "now"),
            ("*", "rest"),
        ];
        let routes = Routes::new(routes.map(|(pattern, queue)| (pattern.to_owned(), queue.to_owned())));
        assert_eq!(routes.queue("feed.import.now"), Some("now"));
        assert_eq!(routes.queue("feed.import.later"), Some("slow"));
        assert_eq!(routes.queue("feed.x"), Some("feeds"));
        assert_eq!(routes.queue("other"), Some("rest"));
        assert_eq!(Routes::default().queue("other"), None);
    }

    #[test]
    fn patterns_fit_as_in_a_shell() {
        for (name, pattern, is_so) in [
            ("a.b.c", "a.*.c", true),
            ("a.c", "a.*.c", false),
            ("abc", "abc", true),
            ("abcd", "abc", false),
            ("aXbXc", "a*b*c", true),
            ("aaa", "a*a*a*a", false),
        ] {
            assert_eq!(fits(name, pattern), is_so, "{name} {pattern}");
        }
    }
}
