use super::*;

fn load(text: &str) -> Result<Template, String> {
    let folder = std::env::temp_dir().join(format!("orchestra-template-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir_all(folder.join("prompts")).unwrap();
    std::fs::write(folder.join("prompts/who.j2"), "{{ who }}!").unwrap();
    std::fs::write(
        folder.join("prompts/macros.j2"),
        "{% macro twice(text) %}{{ text }} {{ text }}{% endmacro %}",
    )
    .unwrap();
    let path = folder.join("t.yaml");
    std::fs::write(&path, text).unwrap();
    let template = Template::load(&path).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        lines.join("\n").replace(&format!("{}/", folder.display()), "")
    });
    std::fs::remove_dir_all(&folder).unwrap();
    template
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

const STEP: &str = "steps:\n- id: one\n  type: ollama_generate\n  model: m\n  prompt: |\n    Hello\n    {{ who }}\n";

#[test]
fn all_problems_are_told_at_once_with_line_column_and_hint() {
    let found = load(&format!("descripton: x\nparameters:\n  whom: {{type: sting}}\n{STEP}")).unwrap_err();
    assert_eq!(
        found,
        "t.yaml:1:1: a template has no descripton; did you mean \"description\"?\n\
         t.yaml:3:10: parameter \"whom\": unknown type \"sting\"; did you mean \"string\"?\n\
         t.yaml:10:8: steps.one.prompt: there is no parameter \"who\"; did you mean \"whom\"?"
    );
}

#[test]
fn steps_form_a_graph() {
    let text = "steps:\n- {id: a, type: render, text: x}\n- {id: b, type: render, needs: [], text: y}\n\
                - {id: c, type: render, needs: [a, b], text: \"{{ steps.a }}{{ steps.b }}\"}\n";
    let template = load(text).unwrap();
    let needs: Vec<&[usize]> = template.steps().iter().map(|step| &step.needs[..]).collect();
    assert_eq!(needs, [&[][..], &[], &[0, 1]]);
    let circle = load(&text.replace("needs: []", "needs: c")).unwrap_err();
    assert!(
        circle.contains("these steps wait for each other: b needs c needs b"),
        "{circle}"
    );
}

#[test]
fn parts_are_checked_with_the_texts_that_use_them() {
    let text =
        |part: &str| format!("parameters:\n  whom: {{type: string}}\nsteps:\n- type: render\n  text: \"{part}\"\n");
    let found = load(&text("{% include 'who.j2' %}")).unwrap_err();
    assert!(found.contains("there is no parameter \"who\""), "{found}");
    let template = load(&text("{% from 'macros.j2' import twice %}{{ twice(whom) }}")).unwrap();
    let scope = Scope::new(&object(json!({"whom": "x"})));
    assert_eq!(template.fields(&template.steps()[0], &scope).unwrap()["text"], "x x");
}

#[test]
fn parameters_are_checked_and_defaults_filled_in() {
    let text = format!(
        "parameters:\n  who:\n    type: string\n    max_length: 5\n  times:\n    type: integer\n    default: 2\n{STEP}"
    );
    let template = load(&text).unwrap();
    let check = |params: Value| template.check(object(params));
    assert_eq!(check(json!({"who": "a"})).unwrap()["times"], 2);
    let wrong = |params| check(params).unwrap_err();
    assert!(wrong(json!({})).ends_with("t.yaml:2: parameter \"who\" is missing"));
    assert!(wrong(json!({"who": 1})).contains("parameter \"who\": 1 is not of type \"string\""));
    let all = wrong(json!({"whom": "a", "times": "b"}));
    assert!(
        all.contains("did you mean \"who\"?")
            && all.contains("t.yaml:5: parameter \"times\"")
            && all.contains("\"who\" is missing"),
        "{all}"
    );
}

#[test]
fn values_keep_their_types_and_texts_are_texts() {
    let text = "parameters:\n  n: {type: integer}\n  none: {type: string, required: false}\nsteps:\n- id: a\n  type: render\n  text: \"{{ n }}\"\n\
                - {id: b, type: ollama_generate, model: m, prompt: \"{{ n }}\", system: \"{{ none }}\", options: {seed: \"{{ n }}\"}}\n\
                output: {n: \"{{ n }}\", text: \"n={{ n }}\", list: [\"{{ n + 1 }}\"], step: \"{{ steps.a }}\"}\n";
    let template = load(text).unwrap();
    let mut scope = Scope::new(&object(json!({"n": 3, "none": null})));
    scope.finish("a", &json!("3"));
    let output = template.output(&scope).unwrap().unwrap();
    assert_eq!(output, json!({"n": 3, "text": "n=3", "list": [4], "step": "3"}));
    // What is nothing is not sent.
    let fields = template.fields(&template.steps()[1], &scope).unwrap();
    assert_eq!(
        Value::Object(fields),
        json!({"model": "m", "prompt": "3", "options": {"seed": 3}})
    );
}

#[test]
fn a_text_without_end_is_stopped() {
    let text = "steps:\n- type: render\n  text: \"{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}\"\n";
    let template = load(text).unwrap();
    let error = template
        .fields(&template.steps()[0], &Scope::new(&Map::new()))
        .unwrap_err();
    assert!(error.contains("takes too long"), "{error}");
}

#[test]
fn a_step_changes_with_those_before_it() {
    let text = "steps:\n- {id: a, type: render, text: x}\n- {id: b, type: render, text: y}\n- {id: c, type: render, needs: [], text: z}\n";
    let digests = |text: &str| {
        load(text)
            .unwrap()
            .steps()
            .iter()
            .map(|step| step.digest)
            .collect::<Vec<_>>()
    };
    let (before, after) = (digests(text), digests(&text.replace("text: x", "text: w")));
    assert!(before[0] != after[0] && before[1] != after[1] && before[2] == after[2]);
    assert_eq!(before, digests(text));
}

/// The form that AI Task Orchestra has.
#[test]
fn parameters_may_stand_in_a_list() {
    let text = "name: t\nparameters:\n  - name: model\n    type: string\n    required: true\n    description: which\n  - name: tokens\n    type: integer\n    required: false\n  - name: more\n    type: string\n\
                steps:\n  - type: ollama_analyze\n    model: \"{{model}}\"\n    input: \"{{more}}\"\n    max_tokens: \"{{tokens}}\"\n";
    let template = load(text).unwrap();
    let required: Vec<bool> = template.parameters().map(|parameter| parameter.required).collect();
    assert_eq!(required, [true, false, false]);
    assert!(template.check(object(json!({"model": "m"}))).is_ok());
}

#[test]
fn what_is_shipped_is_right() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let options = crate::ai::Options {
        templates: crate::ai::Folder::Named(root.join("templates")),
        tasks: crate::ai::Folder::Named(root.join("tasks")),
        ..crate::ai::Options::default()
    };
    let engine = crate::ai::Engine::load(&options).unwrap();
    assert!(engine.templates().count() >= 4);
}
