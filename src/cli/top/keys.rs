//! What a key does.

use ratatui::crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers};
use serde_json::{Value, json};

use super::model::{Model, Popup};

/// What is to be done beyond what is seen.
pub(super) enum Wish {
    Nothing,
    Quit,
    /// Tell workers.
    Tell(&'static str, Value),
}

pub(super) fn press(input: &Event, model: &mut Model) -> Wish {
    let Event::Key(key) = input else { return Wish::Nothing };
    if key.kind == KeyEventKind::Release {
        return Wish::Nothing;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
        return Wish::Quit;
    }
    match (&model.popup, key.code) {
        (Popup::Revoke(task), KeyCode::Char('y' | 'Y')) => {
            let arguments = json!({"task_id": [task.id], "terminate": true, "signal": "SIGTERM"});
            model.note(format!("{}[{}] is revoked", task.name, task.id));
            model.popup = Popup::None;
            return Wish::Tell("revoke", arguments);
        }
        (Popup::None, KeyCode::Char('q') | KeyCode::Esc) => return Wish::Quit,
        (Popup::None, KeyCode::Down | KeyCode::Char('j')) => model.select(1),
        (Popup::None, KeyCode::Up | KeyCode::Char('k')) => model.select(-1),
        (Popup::None, KeyCode::PageDown) => model.select(10),
        (Popup::None, KeyCode::PageUp) => model.select(-10),
        (Popup::None, KeyCode::Char('s')) => model.sort = model.sort.next(),
        (Popup::None, KeyCode::Char('?' | 'h')) => model.popup = Popup::Help,
        (Popup::None, KeyCode::Enter | KeyCode::Char('r')) => match model.selected() {
            Some(task) if key.code == KeyCode::Enter => model.popup = Popup::Task(task),
            Some(task) => model.popup = Popup::Revoke(task),
            None => model.note("no task is chosen: ↑ and ↓ choose one".to_owned()),
        },
        (Popup::None, KeyCode::Char('e')) => {
            model.note("workers are asked to send task events".to_owned());
            return Wish::Tell("enable_events", json!({}));
        }
        (Popup::None, _) => {}
        // Anything else closes what is open, and revokes nothing.
        _ => model.popup = Popup::None,
    }
    Wish::Nothing
}
