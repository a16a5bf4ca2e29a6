//! Where a task goes: by its name (`task_routes`, `celery.app.routes`), by the options of its call, and by how queues
//! are bound (`task_queues`).

use super::{CallOptions, Json, Kwargs, Queue};

/// Routes by task name, and the queues they lead to: the first that fits, where `*` stands for anything.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    routes: Vec<(String, Kwargs)>,
    queues: Vec<Queue>,
    default_queue: Option<String>,
    only_known: bool,
}

/// Where one message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Exchange; empty is the default one.
    pub exchange: String,
    /// Routing key; on the default exchange the queue.
    pub routing_key: String,
    /// The queue that was meant, if one was.
    pub queue: Option<String>,
}

impl Routes {
    /// From names or patterns, and queues. A whole name comes before all patterns.
    pub fn new(routes: impl IntoIterator<Item = (String, String)>) -> Self {
        let options = |queue: String| Kwargs::from_iter([("queue".to_owned(), Json::string(&queue))]);
        let mut routes: Vec<(String, Kwargs)> = routes
            .into_iter()
            .map(|(pattern, queue)| (pattern, options(queue)))
            .collect();
        names_first(&mut routes);
        Self::with_options(routes)
    }

    /// From names or patterns, in their order, and what calls of such tasks are sent with: `queue`, `exchange`,
    /// `routing_key`, `priority` and any other option of `apply_async`.
    pub fn with_options(routes: Vec<(String, Kwargs)>) -> Self {
        Self {
            routes,
            ..Self::default()
        }
    }

    /// With the queues of `task_queues`. `only_known`: a queue that is not among them is an error, and not made
    /// (`task_create_missing_queues = false`).
    #[must_use]
    pub fn with_queues(mut self, queues: Vec<Queue>, only_known: bool) -> Self {
        (self.queues, self.only_known) = (queues, only_known);
        self
    }

    /// Where goes what nothing else is said about (`task_default_queue`).
    #[must_use]
    pub fn with_default(mut self, queue: impl Into<String>) -> Self {
        self.default_queue = Some(queue.into());
        self
    }

    /// The options that the route of a task adds; `None` when no route names it.
    pub fn options(&self, task: &str) -> Option<&Kwargs> {
        let found = self.routes.iter().find(|(pattern, _)| fits(task, pattern));
        found.map(|(_, options)| options)
    }

    /// The queue of a task; `None` when no route names it, or names none.
    pub fn queue(&self, task: &str) -> Option<String> {
        Some(self.options(task)?.get("queue")?.as_str()?.into_owned())
    }

    /// The queues that routes name.
    pub fn queues(&self) -> impl Iterator<Item = String> {
        let queue = |(_, options): &(String, Kwargs)| Some(options.get("queue")?.as_str()?.into_owned());
        self.routes.iter().filter_map(queue)
    }

    /// Where a call goes. What it says itself comes first, then its route, then the default queue.
    ///
    /// # Errors
    /// It names a queue that nobody knows, where only known ones may be used.
    pub fn destination(&self, task: &str, options: &CallOptions) -> Result<Destination, String> {
        let route = self.options(task);
        let get = |name: &str| {
            let said = options.str(name).filter(|text| !text.is_empty());
            let routed = || Some(route?.get(name)?.as_str()?.into_owned());
            said.or_else(|| routed().filter(|text| !text.is_empty()))
        };
        let (queue, exchange, routing_key) = match (get("queue"), get("exchange"), get("routing_key")) {
            (None, Some(exchange), Some(routing_key)) => {
                return Ok(Destination {
                    exchange,
                    routing_key,
                    queue: None,
                });
            }
            said => said,
        };
        // One of the two alone says no more than the default queue does.
        let name = queue
            .or_else(|| self.default_queue.clone())
            .unwrap_or_else(|| "celery".to_owned());
        let known = self.queues.iter().find(|queue| queue.name == name);
        if known.is_none() && self.only_known && self.default_queue.as_ref() != Some(&name) {
            return Err(format!(
                "QueueNotFound: {name:?} is not in task_queues, and task_create_missing_queues is false"
            ));
        }
        let direct = known.is_none_or(|known| known.exchange_type == super::ExchangeType::Direct);
        let (exchange, routing_key) = match (exchange, routing_key, known) {
            // A direct exchange needs no table: the list is named.
            (Some(exchange), Some(routing_key), _) if direct => (exchange, routing_key),
            (exchange, routing_key, Some(known)) if !direct => (
                exchange.unwrap_or_else(|| known.exchange.clone()),
                routing_key.unwrap_or_else(|| known.routing_key.clone()),
            ),
            _ => (String::new(), name.clone()),
        };
        Ok(Destination {
            exchange,
            routing_key,
            queue: Some(name),
        })
    }
}

/// The order within one router, as Celery's `MapRoute` has it: whole names before patterns, which stay in their order.
pub(crate) fn names_first<T>(routes: &mut [(String, T)]) {
    routes.sort_by_key(|(pattern, _)| pattern.contains('*'));
}

/// Whether a name fits a pattern: one with a `*` is read as Python's `fnmatch` reads it, with `?` and `[a-z]` as well;
/// any other is a name.
pub(crate) fn fits(name: &str, pattern: &str) -> bool {
    if !pattern.contains('*') {
        return name == pattern;
    }
    let (name, pattern): (Vec<char>, Vec<char>) = (name.chars().collect(), pattern.chars().collect());
    let (mut at, mut of) = (0, 0);
    // Behind the last `*`, and what that has taken so far: it takes as little as it can.
    let mut star = None;
    loop {
        if pattern.get(of) == Some(&'*') {
            of += 1;
            star = Some((of, at));
        } else if at == name.len() && of == pattern.len() {
            return true;
        } else if let Some(next) = name.get(at).and_then(|char| takes(&pattern, of, *char)) {
            (at, of) = (at + 1, next);
        } else {
            match star {
                Some((behind, taken)) if taken < name.len() => {
                    (at, of) = (taken + 1, behind);
                    star = Some((behind, taken + 1));
                }
                _ => return false,
            }
        }
    }
}

/// Where a pattern goes on if it takes the character at that place.
fn takes(pattern: &[char], of: usize, char: char) -> Option<usize> {
    let own = *pattern.get(of)?;
    let set = &pattern[of + 1..];
    let is_not = set.first() == Some(&'!');
    let set = &set[usize::from(is_not)..];
    // A bracket that comes first in a set is in it; one that is never closed is a character like any other.
    let end = set.iter().skip(1).position(|char| *char == ']').map(|end| end + 1);
    match (own, end) {
        ('?', _) => Some(of + 1),
        ('[', Some(end)) => (holds(&set[..end], char) != is_not).then_some(of + 1 + usize::from(is_not) + end + 1),
        _ => (own == char).then_some(of + 1),
    }
}

/// Whether a character is in a set such as `a-z_`.
fn holds(mut set: &[char], char: char) -> bool {
    while let Some(first) = set.first() {
        let last = if set.get(1) == Some(&'-') { set.get(2) } else { None };
        if (*first..=*last.unwrap_or(first)).contains(&char) {
            return true;
        }
        set = &set[if last.is_some() { 3 } else { 1 }..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ExchangeType;

    #[test]
    fn a_name_is_routed_by_itself_or_by_the_first_pattern() {
        let routes = [
            ("feed.import.*", "slow"),
            ("feed.*", "feeds"),
            ("feed.never.*", "never"),
            ("feed.import.now", "now"),
            ("*", "rest"),
        ];
        let routes = Routes::new(routes.map(|(pattern, queue)| (pattern.to_owned(), queue.to_owned())));
        assert_eq!(routes.queue("feed.import.now").as_deref(), Some("now"));
        assert_eq!(routes.queue("feed.import.later").as_deref(), Some("slow"));
        assert_eq!(routes.queue("feed.x").as_deref(), Some("feeds"));
        assert_eq!(
            routes.queue("feed.never.x").as_deref(),
            Some("feeds"),
            "the first that fits"
        );
        assert_eq!(routes.queue("other").as_deref(), Some("rest"));
        assert_eq!(Routes::default().queue("other"), None);
    }

    #[test]
    fn a_call_goes_where_it_says_then_where_its_route_says() {
        let queue = |name: &str, exchange: &str, exchange_type, key: &str| Queue {
            exchange: exchange.into(),
            exchange_type,
            routing_key: key.into(),
            ..Queue::new(name)
        };
        let queues = vec![
            queue("news", "world", ExchangeType::Topic, "news.#"),
            queue("all", "everybody", ExchangeType::Fanout, "celery"),
            queue("jobs", "work", ExchangeType::Direct, "jobs.now"),
        ];
        let routes = Routes::new([("a.*".to_owned(), "news".to_owned())]).with_queues(queues, true);
        let to = |task: &str, options: &[(&str, &str)]| {
            let mut call = CallOptions::default();
            options.iter().for_each(|(name, value)| call.set_str(name, value));
            let to = routes.destination(task, &call);
            to.map(|to| format!("{}/{}/{}", to.exchange, to.routing_key, to.queue.unwrap_or_default()))
        };
        assert_eq!(to("a.b", &[]).unwrap(), "world/news.#/news");
        assert_eq!(to("a.b", &[("routing_key", "news.x")]).unwrap(), "world/news.x/news");
        assert_eq!(to("b", &[("queue", "all")]).unwrap(), "everybody/celery/all");
        assert_eq!(to("b", &[("queue", "jobs")]).unwrap(), "/jobs/jobs");
        assert_eq!(to("b", &[("exchange", "x"), ("routing_key", "y")]).unwrap(), "x/y/");
        // What Celery's `send_task` makes of one alone: on a direct queue nothing.
        let ours = routes.clone().with_default("home");
        for alone in ["exchange", "routing_key"] {
            let mut call = CallOptions::default();
            call.set_str(alone, "x");
            assert_eq!(ours.destination("b", &call).unwrap().routing_key, "home", "{alone}");
        }
        let mut call = CallOptions::default();
        call.set_str("routing_key", "news.x");
        let to_default = routes.clone().with_default("news").destination("b", &call).unwrap();
        assert_eq!((&*to_default.exchange, &*to_default.routing_key), ("world", "news.x"));
        assert!(
            to("b", &[("queue", "other")])
                .unwrap_err()
                .contains("task_create_missing_queues")
        );
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
            // As `fnmatch.fnmatchcase` of Python says.
            ("feed.a1", "feed.?[0-9]*", true),
            ("feed.ab", "feed.?[0-9]*", false),
            ("feed.x.y", "feed.[!a-c]*", true),
            ("feed.b.y", "feed.[!a-c]*", false),
            ("a]-", "*[]-]", true),
            ("a[", "*[", true),
            ("größe", "gr?*e", true),
            ("a?", "a?", true),
            ("ab", "a?", false),
        ] {
            assert_eq!(fits(name, pattern), is_so, "{name} {pattern}");
        }
    }
}
