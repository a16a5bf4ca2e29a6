//! Chains in the minijinja of a text. minijinja bounds how deep brackets and blocks are nested, but no chain: of
//! operators, of `.attribute`, of `|filter`, of `not`, of `elif`. Each link is one more level of its tree, through which
//! it goes by recursion when it reads, compiles and drops it, and a stack that overflows ends the whole worker.

use minijinja::machinery::{Token, tokenize};

/// Most links between the beginning of an expression and any place in it. In a debug build five hundred take less than a
/// MiB of stack, of the two that a thread of ours has.
const LINKS: usize = 500;
/// Most `elif` around any place of a text: those of its own `if`, and of the ones that this is in.
const BRANCHES: usize = 100;

/// A chain that is longer than it may be.
#[derive(Debug)]
pub(super) struct Chain {
    /// The byte of the text where it is too long.
    pub at: usize,
    /// What it is.
    pub what: String,
    /// What to do about it.
    pub hint: &'static str,
}

/// The first chain of a text that is too long.
pub(super) fn too_long(text: &str, is_expression: bool) -> Option<Chain> {
    // The `elif` so far of each `if` that is open, and of all of them.
    let (mut branches, mut all): (Vec<usize>, usize) = (Vec::new(), 0);
    let (mut path, mut begins) = (Path::default(), false);
    for token in tokenize(text, is_expression, Default::default()) {
        // Where the tokens end minijinja ends as well, and says why.
        let (token, span) = token.ok()?;
        let begun = std::mem::replace(&mut begins, matches!(token, Token::BlockStart));
        match token {
            Token::VariableStart | Token::BlockStart => path = Path::default(),
            Token::Ident("if") if begun => branches.push(0),
            Token::Ident("elif") if begun => {
                if let Some(count) = branches.last_mut() {
                    (*count, all) = (*count + 1, all + 1);
                }
            }
            Token::Ident("endif") if begun => all -= branches.pop().unwrap_or_default(),
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => path.open(),
            Token::ParenClose | Token::BracketClose | Token::BraceClose => path.close(),
            Token::Comma | Token::Colon => path.next(),
            Token::Ident("and" | "or" | "not" | "is" | "if") => path.links += 1,
            Token::Plus | Token::Minus | Token::Mul | Token::Div | Token::FloorDiv | Token::Pow | Token::Mod => {
                path.links += 1;
            }
            Token::Tilde | Token::Pipe | Token::Dot => path.links += 1,
            // Names, values, and comparisons, of which one follows another without being part of it.
            _ => {}
        }
        let at = span.start_offset as usize;
        if path.links > LINKS {
            let what = format!("an expression is a chain of more than {LINKS} operators, attributes, filters or calls");
            let hint = "part it with {% set %}, or make a list and go through it";
            return Some(Chain { at, what, hint });
        }
        if all > BRANCHES {
            let what = format!("there are more than {BRANCHES} elif in one if and those around it");
            let hint = "look the value up in a mapping, or part the text";
            return Some(Chain { at, what, hint });
        }
    }
    None
}

/// Whether a text can put a value into another again and again, deeper than one expression can: in a namespace, in a
/// macro that calls itself, or by many statements, one after the other or one in the other.
pub(super) fn may_nest(text: &str) -> bool {
    let (mut levels, mut is_statement) = (0, false);
    for (token, _) in tokenize(text, false, Default::default()).map_while(Result::ok) {
        match token {
            Token::BlockStart => is_statement = true,
            Token::BlockEnd => is_statement = false,
            Token::Ident("namespace" | "macro") => return true,
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen | Token::Pipe | Token::Plus if is_statement => {
                levels += 1;
            }
            _ => {}
        }
    }
    levels > LINKS
}

/// The way to a place in an expression.
#[derive(Default)]
struct Path {
    /// How long it is.
    links: usize,
    /// The brackets around the place.
    brackets: Vec<Bracket>,
}

struct Bracket {
    /// The way to what is in it.
    begin: usize,
    /// The longest way to anything in it.
    longest: usize,
}

impl Path {
    fn open(&mut self) {
        self.links += 1;
        self.brackets.push(Bracket {
            begin: self.links,
            longest: self.links,
        });
    }

    /// What comes after a comma is no part of what comes before it.
    fn next(&mut self) {
        match self.brackets.last_mut() {
            Some(bracket) => {
                bracket.longest = bracket.longest.max(self.links);
                self.links = bracket.begin;
            }
            None => self.links = 0,
        }
    }

    /// What comes after a bracket has all of it as a part.
    fn close(&mut self) {
        if let Some(bracket) = self.brackets.pop() {
            self.links = self.links.max(bracket.longest);
        }
    }
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, context};

    use super::*;

    /// Texts with a chain of so many links.
    fn chains(links: usize) -> Vec<String> {
        let each = |begin: &str, link: &str, end: &str| format!("{{{{ {begin}{}{end} }}}}", link.repeat(links));
        vec![
            each("a", " + a", ""),
            each("a", " ~ a", ""),
            each("a", " ** a", ""),
            each("a", " and a", ""),
            each("a", " or a", ""),
            each("a", " | trim", ""),
            each("a", ".a", ""),
            each("", "not ", "a"),
            each("", "- ", "a"),
            each("a", " is number", ""),
            each("a", " if a", ""),
            each("", "a if a else ", "a"),
            each("a", "[a]", ""),
            each("a", "[a:a:a]", ""),
            each("a", "()", ""),
            each("[a, (a, a)", "+a", "]"),
            format!("{{% filter trim{} %}}x{{% endfilter %}}", "|trim".repeat(links)),
            format!(
                "{{% for {}a{} in a %}}{{% endfor %}}",
                "(".repeat(links),
                ")".repeat(links)
            ),
            format!("{{% set a = a{} %}}", "*a".repeat(links)),
        ]
    }

    fn branches(count: usize) -> String {
        format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}x".repeat(count))
    }

    #[test]
    fn a_chain_beyond_the_bound_is_refused_and_one_within_it_fits_any_stack() {
        let nested = format!(
            "{}{{% if b %}}{}",
            branches(60).replace("{% endif %}", ""),
            branches(60)
        );
        for text in chains(LINKS + 3).iter().chain([&branches(BRANCHES + 1), &nested]) {
            assert!(too_long(text, false).is_some(), "{text}");
        }
        let within = chains(LINKS - 3).into_iter().chain([branches(BRANCHES)]);
        // As large as that of a thread of tokio, which has other things on it: less than all of it must do.
        let thread = std::thread::Builder::new().stack_size(3 << 19);
        let ran = thread.spawn(|| {
            for text in within {
                assert!(too_long(&text, false).is_none(), "{text}");
                let mut environment = Environment::new();
                environment.add_template_owned("t", text.clone()).unwrap();
                let template = environment.get_template("t").unwrap();
                template.undeclared_variables(true);
                let _ = template.render(context! {a => 1});
            }
        });
        ran.unwrap().join().unwrap();
    }

    #[test]
    fn what_may_nest_values_deeply_is_known() {
        let many = |part: &str| part.repeat(LINKS + 1);
        for text in [
            "{% set ns = namespace(x=1) %}",
            "{% macro f(x) %}{{ f([x]) }}{% endmacro %}",
            &many("{% set x = [x] %}"),
            &many("{% set x = x[1:] %}"),
            &many("{% with x = x | list %}"),
        ] {
            assert!(may_nest(text), "{text}");
        }
        for text in [
            "{% set x = [x] %}",
            "namespace",
            &many("{{ [x] }}{% set x = 1 %}{% if x %}"),
        ] {
            assert!(!may_nest(text), "{text}");
        }
    }

    #[test]
    fn what_is_long_without_being_a_chain_is_in_order() {
        let many = |part: &str| part.repeat(5000);
        for text in [
            many("a + b. {{ a }} {% if a.b %}- c{% endif %} "),
            format!("{{{{ [{}] }}}}", many("a.b + 1, ")),
            format!("{{{{ {{{}}} }}}}", many("'a': [1, -2.5, (a.b, f(c))], ")),
            format!("{{{{ f({}) }}}}", many("a=b.c | trim, ")),
            many("{% if 1 %}a{% elif 2 %}b{% elif 3 %}c{% endif %}"),
            many("{{ elif }}{% if elif %}{% endif %}"),
            format!("{{{{ '{}' }}}}", many("+ . | not ")),
            format!(
                "{{# {} #}}{{% raw %}}{{{{ {} }}}}{{% endraw %}}",
                many("+ a"),
                many("+ a")
            ),
        ] {
            assert!(too_long(&text, false).is_none(), "{:?}", too_long(&text, false));
        }
        // Its place is where it is too long.
        let text = format!("{{{{ [{}a{}] }}}}", many("a, "), many("+a"));
        assert_eq!(too_long(&text, false).unwrap().at, 4 + 3 * 5000 + 1 + 2 * (LINKS - 1));
        let expression = format!("a{}", many("+a"));
        assert!(too_long(&expression, true).is_some() && too_long(&expression, false).is_none());
    }
}
