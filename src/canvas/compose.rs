//! Putting signatures together, as Python's `|` does.

use crate::wire::{Chord, Json, Kind, Signature};

/// How far an error callback that is linked to a chord reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// To its body, and to chords in its header.
    #[default]
    Body,
    /// To all members of its header as well (`task_allow_error_cb_on_chord_header`).
    Header,
    /// There, and to chords in chains as well, which nobody but their author will reach: who applies a chain later goes
    /// by a setting of his own.
    Everywhere,
}

/// One after the other (`celery.chain`). Nested chains become one, and what follows a group becomes the body of a
/// chord.
pub fn chain(steps: impl IntoIterator<Item = Signature>) -> Signature {
    let mut steps = steps.into_iter();
    let Some(first) = steps.next() else {
        return Signature::of(Kind::Chain(Vec::new()));
    };
    let first = match first.kind {
        Kind::Chain(_) => first,
        _ => Signature::of(Kind::Chain(vec![first])),
    };
    steps.fold(first, then)
}

/// All at once (`celery.group`).
pub fn group(tasks: impl IntoIterator<Item = Signature>) -> Signature {
    Signature::of(Kind::Group(tasks.into_iter().collect()))
}

/// All at once, and then `body` with the list of their results (`celery.chord`).
pub fn chord(header: impl IntoIterator<Item = Signature>, body: Signature) -> Signature {
    Signature::of(Kind::Chord(Box::new(Chord {
        header: header.into_iter().collect(),
        group: None,
        frozen: false,
        body: Some(body),
    })))
}

/// A group of one is that one (`celery.canvas.maybe_unroll_group`).
pub(super) fn unroll(signature: Signature) -> Signature {
    match signature.kind {
        Kind::Group(mut tasks) if tasks.len() == 1 => tasks.remove(0),
        _ => signature,
    }
}

pub(super) fn is_empty_group(signature: &Signature) -> bool {
    matches!(&signature.kind, Kind::Group(tasks) if tasks.is_empty())
}

/// `first | next`.
pub fn then(first: Signature, next: Signature) -> Signature {
    then_linking(first, next, Reach::Body)
}

/// The same; the error callbacks of chains that are taken apart reach that far.
pub(super) fn then_linking(first: Signature, next: Signature, reach: Reach) -> Signature {
    if let Kind::Group(_) = first.kind {
        // A body that is a group of one stays one: its result is a list.
        return if is_empty_group(&next) {
            first
        } else {
            upgrade(first, next)
        };
    }
    let next = unroll(next);
    match &first.kind {
        Kind::Chain(_) => chain_then(first, next, reach),
        Kind::Chord(_) if !matches!(next.kind, Kind::Group(_) | Kind::Chain(_)) => body_then(first, next, reach),
        _ => match next.kind {
            Kind::Chain(_) => {
                let mut steps = vec![first];
                steps.extend(unchain(next, reach));
                Signature::of(Kind::Chain(steps))
            }
            _ => Signature::of(Kind::Chain(vec![first, next])),
        },
    }
}

fn chain_then(mut first: Signature, next: Signature, reach: Reach) -> Signature {
    if is_empty_group(&next) {
        return first;
    }
    if let Kind::Chain(_) = next.kind {
        let steps = unchain(next, reach).into_iter();
        return steps.fold(first, |first, step| then_linking(first, step, reach));
    }
    let is_group = matches!(next.kind, Kind::Group(_));
    let is_chord = matches!(next.kind, Kind::Chord(_));
    // What follows a group or a chord goes into the last step: the chain keeps its options and its callbacks.
    if let Kind::Chain(steps) = &mut first.kind {
        match steps.pop_if(|last| match last.kind {
            Kind::Group(_) => !is_group,
            Kind::Chord(_) => !is_group && !is_chord,
            _ => false,
        }) {
            None => {}
            Some(last) if matches!(last.kind, Kind::Chord(_)) => {
                steps.push(body_then(last, next, reach));
                return first;
            }
            Some(last) => {
                let upgraded = upgrade(last, next);
                let step = match steps.pop_if(|before| matches!(before.kind, Kind::Chord(_))) {
                    // Two chords in a row: the second belongs to the body of the first.
                    Some(before) => body_then(before, upgraded, reach),
                    None => upgraded,
                };
                steps.push(step);
                return first;
            }
        }
    }
    let mut steps = unchain(first, reach);
    match steps.pop() {
        None if is_group => return next,
        None => steps.push(next),
        Some(last) if matches!(last.kind, Kind::Chord(_)) && !is_chord => steps.push(body_then(last, next, reach)),
        Some(last) => steps.extend([last, next]),
    }
    Signature::of(Kind::Chain(steps))
}

/// A group and what follows it.
fn upgrade(group: Signature, body: Signature) -> Signature {
    match group.kind {
        Kind::Group(tasks) => chord(tasks, body),
        _ => chord([group], body),
    }
}

fn body_then(mut signature: Signature, next: Signature, reach: Reach) -> Signature {
    if let Kind::Chord(chord) = &mut signature.kind {
        chord.body = Some(match chord.body.take() {
            Some(body) => then_linking(body, next, reach),
            None => next,
        });
    }
    signature
}

/// The steps of a chain, with its callbacks on the last and its error callbacks on each.
pub(super) fn unchain(chain: Signature, reach: Reach) -> Vec<Signature> {
    let Kind::Chain(mut steps) = chain.kind else {
        return vec![chain];
    };
    if let Some(last) = steps.last_mut() {
        for callback in chain.options.link {
            link(last, callback);
        }
    }
    for errback in chain.options.link_error {
        for step in &mut steps {
            link_error(step, &errback, reach);
        }
    }
    steps
}

/// Called with the result of `signature` (`Signature.link`).
pub(super) fn link(signature: &mut Signature, mut callback: Signature) {
    match &mut signature.kind {
        Kind::Group(tasks) => {
            // The first task has not the results of the others to pass on.
            callback.set_immutable();
            if let Some(first) = tasks.first_mut() {
                link(first, callback);
            }
        }
        Kind::Chord(chord) => {
            if let Some(body) = &mut chord.body {
                link(body, callback);
            }
        }
        _ => signature.options.add_link(callback),
    }
}

/// Called with a failure of `signature` (`Signature.link_error`).
pub(super) fn link_error(signature: &mut Signature, errback: &Signature, reach: Reach) {
    match &mut signature.kind {
        Kind::Group(tasks) => tasks.iter_mut().for_each(|task| link_error(task, errback, reach)),
        Kind::Chord(chord) => {
            for task in &mut chord.header {
                if reach != Reach::Body {
                    link_error(task, &of_header(errback), reach);
                }
                if matches!(task.kind, Kind::Chord(_)) {
                    link_error(task, errback, reach);
                }
            }
            if let Some(body) = &mut chord.body {
                link_error(body, errback, reach);
            }
        }
        Kind::Chain(tasks) if reach == Reach::Everywhere => {
            tasks.iter_mut().for_each(|task| link_error(task, errback, reach));
            // A chain that never begins, the body of a chord whose header failed, is asked for its own.
            signature.options.add_link_error(errback.clone());
        }
        _ => signature.options.add_link_error(errback.clone()),
    }
}

/// The error callback of a member of a header. Celery means to make it immutable and sets an option of that name, which
/// nobody reads: it gets the member's id, and is another than that of the body.
fn of_header(errback: &Signature) -> Signature {
    let mut errback = errback.clone();
    errback.options.rest.insert("immutable".to_owned(), Json::bool(true));
    errback
}

/// Called with a failure of the group that is the body of a chord, by each of its tasks and never by a header
/// (`celery.canvas._link_error_to_body_tasks`). One with error callbacks of its own, which will replace those of its
/// tasks, gets it there.
pub(super) fn link_error_to_body(body: &mut Signature, errback: &Signature, runs_as_group: bool) {
    match &mut body.kind {
        Kind::Group(tasks) if !runs_as_group || body.options.link_error.is_empty() => {
            tasks
                .iter_mut()
                .for_each(|task| link_error_to_body(task, errback, false));
        }
        Kind::Chord(chord) => {
            if let Some(body) = &mut chord.body {
                link_error_to_body(body, errback, true);
            }
        }
        _ => body.options.add_link_error(errback.clone()),
    }
}

impl Signature {
    /// With a callback, called with the result.
    #[must_use]
    pub fn link(mut self, callback: Self) -> Self {
        link(&mut self, callback);
        self
    }

    /// With an error callback.
    #[must_use]
    pub fn link_error(mut self, errback: Self) -> Self {
        link_error(&mut self, &errback, Reach::Body);
        self
    }

    /// With an error callback, called for each member of a chord's header that fails as well, with the id of the
    /// member, and not only for its body (`task_allow_error_cb_on_chord_header`).
    #[must_use]
    pub fn link_error_everywhere(mut self, errback: Self) -> Self {
        link_error(&mut self, &errback, Reach::Everywhere);
        self
    }
}

/// `first | next`, as in Python.
impl std::ops::BitOr for Signature {
    type Output = Self;

    fn bitor(self, next: Self) -> Self {
        then(self, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(name: &str) -> Signature {
        Signature::new(name)
    }

    /// The shape in one line: `a|[b,c]` is a chain of a task and a group, `<a,b>c` a chord.
    fn shape(signature: &Signature) -> String {
        let all = |tasks: &[Signature], by: &str| tasks.iter().map(shape).collect::<Vec<_>>().join(by);
        match &signature.kind {
            Kind::Task | Kind::Other(_) => signature.task.clone(),
            Kind::Chain(tasks) => format!("({})", all(tasks, "|")),
            Kind::Group(tasks) => format!("[{}]", all(tasks, ",")),
            Kind::Chord(chord) => {
                let body = chord.body.as_ref().map(shape).unwrap_or_default();
                format!("<{}>{body}", all(&chord.header, ","))
            }
        }
    }

    #[test]
    fn compositions_have_the_shape_that_python_gives_them() {
        let pair = || group([s("b"), s("c")]);
        assert_eq!(shape(&(s("a") | s("b") | s("c"))), "(a|b|c)");
        assert_eq!(shape(&(s("a") | pair())), "(a|[b,c])");
        assert_eq!(shape(&(s("a") | pair() | s("d"))), "(a|<b,c>d)");
        assert_eq!(shape(&(pair() | s("d"))), "<b,c>d");
        assert_eq!(shape(&(pair() | s("d") | s("e"))), "<b,c>(d|e)");
        assert_eq!(shape(&(pair() | pair() | s("e"))), "<b,c><b,c>e");
        assert_eq!(shape(&(s("a") | group([s("b")]))), "(a|b)");
        assert_eq!(
            shape(&chain([s("a"), s("b") | s("c"), pair(), s("d")])),
            "(a|b|c|<b,c>d)"
        );
        assert_eq!(shape(&(pair() | group([]))), "[b,c]");
        assert_eq!(shape(&(pair() | group([s("d")]))), "<b,c>[d]");
    }

    #[test]
    fn a_chain_whose_last_step_takes_what_follows_stays_what_it_is() {
        let with_options = |last| {
            let chain = Signature::of(Kind::Chain(vec![s("a"), last]));
            chain.option("queue", "slow").link(s("told"))
        };
        let group = || group([s("b"), s("c")]);
        for (last, next, expected) in [
            (group(), s("d"), "(a|<b,c>d)"),
            (group(), chord([s("d")], s("e")), "(a|<b,c><d>e)"),
            (chord([s("b")], s("c")), s("d"), "(a|<b>(c|d))"),
        ] {
            let longer = with_options(last) | next;
            assert_eq!(shape(&longer), expected);
            assert_eq!(longer.options.str("queue").as_deref(), Some("slow"));
            assert_eq!(longer.options.link, [s("told")]);
        }
        // Another is taken apart: its callbacks stay with the step that was its last.
        let longer = with_options(s("b")) | s("c");
        assert!(longer.options.is_empty());
        let Kind::Chain(steps) = &longer.kind else { panic!() };
        assert_eq!(steps[1].options.link, [s("told")]);
    }

    /// The names of tasks, with as many marks as they have error callbacks.
    fn marked(signature: &Signature) -> String {
        let all = |tasks: &[Signature]| tasks.iter().map(marked).collect::<Vec<_>>().join(" ");
        let own = match &signature.kind {
            Kind::Task | Kind::Other(_) => signature.task.clone(),
            Kind::Chain(tasks) => format!("({})", all(tasks)),
            Kind::Group(tasks) => format!("[{}]", all(tasks)),
            Kind::Chord(chord) => {
                let body = chord.body.as_ref().map(marked).unwrap_or_default();
                format!("<{}>{body}", all(&chord.header))
            }
        };
        own + &"!".repeat(signature.options.link_error.len())
    }

    #[test]
    fn p_140_error_callbacks_reach_as_far_as_they_do_in_python() {
        let inner = || chord([s("a")], s("b"));
        let steps = || Signature::of(Kind::Chain(vec![s("c"), inner()]));
        let whole = || chord([inner(), steps(), s("d")], steps());
        for (reach, expected) in [
            (Reach::Body, "<<a>b! (c <a>b) d>(c <a>b)!"),
            // A chord in the header is linked as a member, and once more.
            (Reach::Header, "<<a!>b!! (c <a>b)! d!>(c <a>b)!"),
            (Reach::Everywhere, "<<a!>b!! (c! <a!>b!)! d!>(c! <a!>b!)!"),
        ] {
            let mut linked = whole();
            link_error(&mut linked, &s("told"), reach);
            assert_eq!(marked(&linked), expected);
            // Once is enough.
            link_error(&mut linked, &s("told"), reach);
            assert_eq!(marked(&linked), expected);
        }
        // What hangs on a chain goes to its steps when it is taken apart.
        let mut chain = steps();
        link_error(&mut chain, &s("told"), Reach::Body);
        for (reach, expected) in [(Reach::Body, "(c! <a>b! <d>e)"), (Reach::Header, "(c! <a!>b! <d>e)")] {
            let next = chord([s("d")], s("e"));
            assert_eq!(marked(&then_linking(chain.clone(), next, reach)), expected);
        }
        // It is not where its last step takes what follows.
        assert_eq!(marked(&then(chain, s("e"))), "(c <a>(b e))!");
        // The group that is a chord's body: no header hears of it, and what the group has of its own stays with it.
        let mut body = group([whole(), group([s("e"), s("f")])]);
        link_error_to_body(&mut body, &s("told"), true);
        assert_eq!(marked(&body), "[<<a>b (c <a>b) d>(c <a>b)! [e! f!]]");
        body.options.add_link_error(s("other"));
        link_error_to_body(&mut body, &s("more"), true);
        assert_eq!(marked(&body), "[<<a>b (c <a>b) d>(c <a>b)! [e! f!]]!!");
    }
}
