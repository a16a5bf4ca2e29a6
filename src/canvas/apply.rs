//! What applying a signature sends (`apply_async` of `celery.canvas`).

use std::sync::Arc;

use super::compose::{Reach, link, link_error_to_body};
use super::freeze::{Freeze, freeze, freeze_group, new_id, strip};
use super::steps::{prepare, prepend, unroll_chords};
use super::{ResultNode, size};
use crate::wire::{CallOptions, Carried, Chord, Json, Kind, Kwargs, Outbound, Rest, Signature};

/// The task on whose behalf something is sent.
#[derive(Clone, Debug)]
pub struct Parent {
    /// Its id.
    pub id: String,
    /// The first task of its workflow.
    pub root_id: String,
    /// Its message's priority, if it has one.
    pub priority: Option<u8>,
    /// Headers that go along with all that it sends.
    pub carried: Option<Carried>,
}

/// What priority is given to what has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Priorities {
    /// That of the task that sends it (`task_inherit_parent_priority`). What follows a task has it whatever its own is.
    pub inherit: bool,
    /// This one (`task_default_priority`).
    pub default: Option<u8>,
}

/// What must be written before the first message of a plan is sent.
#[derive(Clone, Debug, PartialEq)]
pub enum GroupWrite {
    /// How many parts a chord waits for.
    Size {
        /// Group id.
        group: String,
        /// Parts.
        size: u64,
    },
    /// How the results of a header are nested.
    Results {
        /// The header's handle.
        handle: ResultNode,
    },
}

/// What follows from applying signatures.
#[derive(Debug, Default)]
pub struct Plan {
    /// Comes first.
    pub groups: Vec<GroupWrite>,
    /// In order.
    pub sends: Vec<Outbound>,
    /// The handles of what was applied, for the `children` of the parent's record.
    pub children: Vec<ResultNode>,
}

/// Applies signatures on behalf of somebody.
#[derive(Debug)]
pub struct Planner<'a> {
    /// The task that sends; `None` for a client.
    pub parent: Option<&'a Parent>,
    /// The client that results are for, when a signature does not say.
    pub reply_to: &'a str,
    /// For what has no priority of its own.
    pub priorities: Priorities,
    /// How far the error callbacks of chains reach.
    pub reach: Reach,
    /// What came of it so far.
    pub plan: Plan,
}

impl<'a> Planner<'a> {
    /// Nothing applied yet.
    pub fn new(parent: Option<&'a Parent>, reply_to: &'a str) -> Self {
        Self {
            parent,
            reply_to,
            priorities: Priorities::default(),
            reach: Reach::default(),
            plan: Plan::default(),
        }
    }

    /// With priorities for what has none.
    #[must_use]
    pub fn with_priorities(mut self, priorities: Priorities) -> Self {
        self.priorities = priorities;
        self
    }

    /// With error callbacks that reach so far.
    #[must_use]
    pub fn reaching(mut self, reach: Reach) -> Self {
        self.reach = reach;
        self
    }

    /// The priority of what has none.
    fn priority(&self) -> Option<u8> {
        let inherited = self.parent.filter(|_| self.priorities.inherit);
        inherited.and_then(|parent| parent.priority).or(self.priorities.default)
    }

    /// Applies a signature as a child of the parent; `args` come before its own. `None` for an empty chain.
    pub fn apply(&mut self, signature: Signature, args: &[Json], with: CallOptions) -> Option<ResultNode> {
        match signature.kind {
            Kind::Task | Kind::Other(_) => Some(self.task(signature, args, with, true)),
            Kind::Group(_) => Some(self.group(signature, args, with, true)),
            Kind::Chain(_) => self.chain(signature, args, with, true),
            Kind::Chord(_) => Some(self.chord(signature, args, with, true)),
        }
    }

    /// A member of a group: the group is the child of the parent, not its members.
    fn member(&mut self, signature: Signature, args: &[Json], with: CallOptions) {
        match signature.kind {
            Kind::Task | Kind::Other(_) => drop(self.task(signature, args, with, false)),
            Kind::Group(_) => drop(self.group(signature, args, with, false)),
            Kind::Chain(_) => drop(self.chain(signature, args, with, false)),
            Kind::Chord(_) => drop(self.chord(signature, args, with, false)),
        }
    }

    fn task(&mut self, mut signature: Signature, args: &[Json], with: CallOptions, child: bool) -> ResultNode {
        prepend(&mut signature, args);
        merge(&mut signature.options, with);
        let mut options = signature.options;
        let id = options.take_str("task_id").unwrap_or_else(new_id);
        let root_id = options
            .take_str("root_id")
            .or_else(|| self.parent.map(|parent| parent.root_id.clone()));
        let parent_id = options
            .take_str("parent_id")
            .or_else(|| self.parent.map(|parent| parent.id.clone()));
        if options.str("reply_to").is_none() {
            options.set_str("reply_to", self.reply_to);
        }
        if let Some(priority) = self.priority()
            && options.get("priority").is_none_or(|own| own.get() == "null")
            && let Ok(priority) = Json::new(&priority)
        {
            options.rest.insert("priority".into(), priority);
        }
        let node = ResultNode::task(id.clone());
        self.plan.sends.push(Outbound {
            task: signature.task,
            root_id: root_id.unwrap_or_else(|| id.clone()),
            id,
            parent_id,
            args: signature.args,
            kwargs: signature.kwargs,
            options,
            carried: self.parent.and_then(|parent| parent.carried.clone()),
        });
        if child {
            self.plan.children.push(node.clone());
        }
        node
    }

    fn group(&mut self, signature: Signature, args: &[Json], with: CallOptions, child: bool) -> ResultNode {
        let Kind::Group(tasks) = signature.kind else {
            return ResultNode::default();
        };
        let mut options = signature.options;
        merge(&mut options, with);
        // The group's id is its members' `group_id`; its own place in another group is not theirs.
        let group_id = options.take_str("task_id").unwrap_or_else(new_id);
        options.set_str("group_id", &group_id);
        options.rest.remove("group_index");
        let chord = options.chord.take();
        let root_id = options.str("root_id");
        let mut members = Vec::with_capacity(tasks.len());
        self.members(tasks, &group_id, root_id.as_deref(), &mut members);
        let args: Vec<Json> = args.iter().chain(&signature.args).cloned().collect();
        let in_chord = chord.is_some() || members.last().is_some_and(|(task, _)| task.options.chord.is_some());
        if in_chord {
            self.plan.groups.push(GroupWrite::Size {
                group: group_id.clone(),
                size: members.iter().map(|(task, _)| size(task)).sum(),
            });
        }
        let mut results = Vec::with_capacity(members.len());
        for (task, result) in members {
            let mut with = options.clone();
            with.chord.clone_from(&chord);
            self.member(task, &args, with);
            results.push(result);
        }
        let node = match &mut results[..] {
            [only] if only.is_group() => std::mem::take(only),
            _ => ResultNode::group(group_id, results),
        };
        if child && !node.children.as_ref().is_some_and(Vec::is_empty) {
            self.plan.children.push(node.clone());
        }
        node
    }

    /// The members of a group, those of groups in it among them.
    fn members(
        &self,
        tasks: Vec<Signature>,
        group_id: &str,
        root_id: Option<&str>,
        members: &mut Vec<(Signature, ResultNode)>,
    ) {
        for (index, mut task) in (0..).zip(tasks) {
            match task.kind {
                Kind::Group(inner) => self.members(inner, group_id, root_id, members),
                Kind::Chain(ref inner) if inner.is_empty() => {}
                _ => {
                    let result = freeze(
                        &mut task,
                        Freeze {
                            group_id: Some(group_id),
                            group_index: Some(index),
                            root_id,
                            reply_to: self.reply_to,
                            ..Freeze::default()
                        },
                    );
                    members.push((task, result));
                }
            }
        }
    }

    fn chain(&mut self, mut signature: Signature, args: &[Json], with: CallOptions, child: bool) -> Option<ResultNode> {
        prepend(&mut signature, args);
        let Kind::Chain(tasks) = signature.kind else {
            return None;
        };
        let mut options = signature.options;
        overwrite(&mut options, with);
        let callbacks = std::mem::take(&mut options.link);
        let errbacks = std::mem::take(&mut options.link_error);
        let chord = options.chord.take();
        let (id, group_id) = (options.take_str("task_id"), options.take_str("group_id"));
        let root_id = options.take_str("root_id");
        let group_index = options.rest.remove("group_index").and_then(|index| index.parse().ok());
        options.rest.remove("parent_id");
        let (mut steps, result) = prepare(
            tasks,
            &signature.args,
            (&errbacks, self.reach),
            Freeze {
                id: id.as_deref(),
                group_id: group_id.as_deref(),
                group_index,
                chord: chord.as_ref(),
                root_id: root_id.as_deref(),
                reply_to: self.reply_to,
            },
        )?;
        if let Some(last) = steps.first_mut() {
            for callback in callbacks {
                last.options.add_link(callback);
            }
        }
        let first = steps.pop()?;
        let single = steps.is_empty();
        // What follows this chain comes after its own steps; both are last first.
        options.chain = Some(match options.chain.take() {
            Some(rest) => rest.after(&steps),
            None => Rest::new(&steps),
        });
        let applied = match (child, &first.kind) {
            (true, _) => self.apply(first, &[], options),
            (false, Kind::Task | Kind::Other(_)) => Some(self.task(first, &[], options, false)),
            (false, _) => {
                self.member(first, &[], options);
                None
            }
        };
        Some(if single { applied.unwrap_or(result) } else { result })
    }

    fn chord(&mut self, mut signature: Signature, args: &[Json], mut with: CallOptions, child: bool) -> ResultNode {
        prepend(&mut signature, args);
        let Signature {
            kind,
            args,
            kwargs,
            options: own_options,
            ..
        } = signature;
        let Kind::Chord(chord) = kind else {
            return ResultNode::default();
        };
        let Chord {
            header,
            group,
            body,
            frozen,
        } = *chord;
        // A delay means the header: the body waits for that anyway.
        let mut delay = Kwargs::new();
        for name in ["countdown", "eta"] {
            let own = own_options.get(name).cloned();
            if let Some(value) = with.rest.remove(name).filter(|value| !value.is_null()).or(own) {
                delay.insert(name.to_owned(), value);
            }
        }
        let given_id = with.take_str("task_id");
        let callbacks = std::mem::take(&mut with.link);
        let errbacks = std::mem::take(&mut with.link_error);

        let mut body = body.unwrap_or_else(|| Signature::of(Kind::Chain(Vec::new())));
        let mut of_body = with.clone();
        of_body.rest.remove("parent_id");
        merge(&mut body.options, of_body);

        let mut options = own_options;
        let own_id = options.take_str("task_id");
        overwrite(&mut options, with);
        options.rest.remove("countdown");
        options.rest.remove("eta");
        let own_callbacks = std::mem::take(&mut options.link);
        let own_errbacks = std::mem::take(&mut options.link_error);
        for callback in pick(callbacks, own_callbacks) {
            match &body.kind {
                Kind::Group(tasks) if tasks.is_empty() => body.options.add_link(callback),
                _ => link(&mut body, callback),
            }
        }
        for errback in pick(errbacks, own_errbacks) {
            match body.kind {
                Kind::Group(_) => link_error_to_body(&mut body, &errback, true),
                _ => body.options.add_link_error(errback),
            }
        }
        let mut of_body = options.clone();
        of_body.rest.remove("parent_id");
        if of_body.rest.get("group_id").is_some_and(Json::is_null) {
            body.options.rest.insert("group_id".into(), Json::null());
        }
        overwrite(&mut body.options, of_body);

        let mut group = group.filter(|_| frozen).unwrap_or_default();
        let group_id = group
            .take_str("task_id")
            .or_else(|| own_id.clone())
            .unwrap_or_else(new_id);
        let root_id = body.options.str("root_id");
        if let Kind::Chain(tasks) = &mut body.kind {
            *tasks = unroll_chords(std::mem::take(tasks), self.reach);
        }
        let body_id = given_id.or(own_id).unwrap_or_else(new_id);
        let mut result = freeze(
            &mut body,
            Freeze {
                id: Some(&body_id),
                group_id: Some(&group_id),
                root_id: root_id.as_deref(),
                reply_to: self.reply_to,
                ..Freeze::default()
            },
        );
        strip(&mut body);
        let body = Arc::new(body);

        // Neither the rest of the chain nor the outer chord is for the header.
        options.chain = None;
        options.chord = None;
        group.set_str("task_id", &group_id);
        let mut header = header;
        let (_, children) = freeze_group(
            &mut header,
            &mut group,
            Freeze {
                group_id: Some(&group_id),
                chord: Some(&body),
                root_id: root_id.as_deref(),
                reply_to: self.reply_to,
                ..Freeze::default()
            },
        );
        let handle = ResultNode::group(group_id.clone(), children);
        if header.is_empty() {
            let (body, args) = (Arc::unwrap_or_clone(body), [Json::list([])]);
            match child {
                true => drop(self.apply(body, &args, CallOptions::default())),
                false => self.member(body, &args, CallOptions::default()),
            }
        } else {
            if handle.children.iter().flatten().any(ResultNode::is_group) {
                self.plan.groups.push(GroupWrite::Results { handle: handle.clone() });
            }
            options.rest.extend(delay);
            options.set_str("task_id", &group_id);
            let mut tasks = Signature::of(Kind::Group(header));
            tasks.options = group;
            let kwargs = kwargs_of_header(&kwargs);
            for task in group_members(&mut tasks).iter_mut().filter(|task| !task.immutable) {
                task.kwargs.extend(kwargs.clone());
            }
            self.group(tasks, &args, options, child);
        }
        result.root_at(handle);
        result
    }
}

fn group_members(group: &mut Signature) -> &mut [Signature] {
    match &mut group.kind {
        Kind::Group(tasks) => tasks,
        _ => &mut [],
    }
}

/// A chord's `kwargs.kwargs` are for the tasks of its header.
fn kwargs_of_header(kwargs: &Kwargs) -> Kwargs {
    kwargs
        .get("kwargs")
        .and_then(|kwargs| kwargs.parse().ok())
        .unwrap_or_default()
}

/// Options of a call come before the signature's own callbacks, as they replace them.
fn pick(given: Vec<Signature>, own: Vec<Signature>) -> Vec<Signature> {
    if given.is_empty() { own } else { given }
}

/// Options of a call over those of a signature (`Signature._merge`). The group, and what is stamped, stay: to change
/// them would keep others waiting for ever.
fn merge(own: &mut CallOptions, mut with: CallOptions) {
    let stamps: Vec<String> = own
        .get("stamped_headers")
        .and_then(|names| names.parse().ok())
        .unwrap_or_default();
    with.rest.retain(|name, value| {
        let stays = name == "group_id" || name == "stamped_headers" || stamps.contains(name);
        !(value.is_null() || stays && own.rest.contains_key(name))
    });
    overwrite(own, with);
}

/// All options of a call over those of a signature.
fn overwrite(own: &mut CallOptions, with: CallOptions) {
    own.rest
        .extend(with.rest.into_iter().filter(|(_, value)| !value.is_null()));
    if !with.link.is_empty() {
        own.link = with.link;
    }
    if !with.link_error.is_empty() {
        own.link_error = with.link_error;
    }
    own.chord = with.chord.or(own.chord.take());
    own.chain = with.chain.or(own.chain.take());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canvas::{chain, chord, group};

    fn planned(signature: Signature, args: &[Json]) -> Plan {
        let mut planner = Planner::new(None, "oid");
        planner.apply(signature, args, CallOptions::default());
        planner.plan
    }

    fn s(name: &str) -> Signature {
        Signature::new(name)
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.sends.iter().map(|outbound| outbound.task.as_str()).collect()
    }

    #[test]
    fn p_120_a_chain_is_its_first_step_with_the_rest_last_first() {
        let plan = planned(chain([s("a"), s("b"), s("c")]), &[Json::number(7)]);
        assert_eq!(names(&plan), ["a"]);
        let first = &plan.sends[0];
        assert_eq!(first.args, [Json::number(7)]);
        let rest = first.options.chain.as_ref().unwrap().steps().unwrap();
        assert!(rest.iter().map(|step| &*step.task).eq(["c", "b"]));
        assert!(rest.iter().all(|step| step.id().is_some()));
        assert_eq!(first.root_id, first.id);
    }

    #[test]
    fn p_126_p_127_a_chord_is_its_header_and_how_many_it_waits_for() {
        let plan = planned(chord([s("a"), s("b") | s("c")], s("sum")), &[]);
        assert_eq!(names(&plan), ["a", "b"]);
        let GroupWrite::Size { group, size } = &plan.groups[0] else {
            panic!("{:?}", plan.groups);
        };
        assert_eq!(*size, 2);
        let member = &plan.sends[0].options;
        let body = member.chord.as_ref().unwrap();
        assert_eq!(
            (&*body.task, body.options.str("group_id")),
            ("sum", Some(group.clone()))
        );
        assert_eq!(member.str("group_id").as_ref(), Some(group));
        // Of a chain in the header its last step is the part.
        assert!(plan.sends[1].options.chord.is_none());
        let last = &plan.sends[1].options.chain.as_ref().unwrap().steps().unwrap()[0].options;
        assert_eq!(last.str("group_id").as_ref(), Some(group));
        assert_eq!(last.get("group_index").unwrap().get(), "1");
        assert!(last.chord.is_some());
    }

    #[test]
    fn p_136_results_that_are_nested_are_written_down() {
        let nested = chain([s("a"), group([s("b"), s("c")])]);
        let plan = planned(chord([s("x"), nested], s("sum")), &[]);
        let handles = plan
            .groups
            .iter()
            .filter(|write| matches!(write, GroupWrite::Results { .. }));
        assert_eq!(handles.count(), 1);
        assert!(
            plan.groups
                .iter()
                .any(|write| matches!(write, GroupWrite::Size { size: 3, .. }))
        );
    }

    #[test]
    fn p_138_an_empty_header_sends_the_body_at_once() {
        let plan = planned(chord([], s("sum")), &[]);
        assert_eq!(names(&plan), ["sum"]);
        assert_eq!(plan.sends[0].args, [Json::list([])]);
        assert!(plan.groups.is_empty());
    }

    #[test]
    fn nothing_comes_of_nothing() {
        assert!(planned(chain([]), &[]).sends.is_empty());
        assert!(planned(group([]), &[]).sends.is_empty());
    }

    #[test]
    fn p_119_an_immutable_call_keeps_its_arguments() {
        let result = [Json::string("result")];
        assert!(planned(s("a").immutable(), &result).sends[0].args.is_empty());
        assert_eq!(planned(s("a").arg(1), &result).sends[0].args.len(), 2);
    }

    #[test]
    fn p_143_stamps_stay_whatever_a_call_says() {
        let mut planner = Planner::new(None, "oid");
        let mut with = CallOptions::default();
        with.set_str("mine", "other");
        with.set_str("priority", "3");
        planner.apply(s("a").stamp("mine", "value"), &[], with);
        let options = &planner.plan.sends[0].options;
        assert_eq!(options.get("mine").unwrap().get(), r#"["value"]"#);
        assert_eq!(options.str("priority").as_deref(), Some("3"));
    }
}
