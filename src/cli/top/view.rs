//! Draws what is known. Made for 80 columns and 24 lines; more room shows more.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Table, Wrap};

use super::super::inspect::age;
use super::model::{Model, Popup, Task};
use crate::clock;

/// Lines that workers, queues and models get at most while there are tasks to show.
const MOST: usize = 6;

pub(super) fn draw(frame: &mut Frame<'_>, model: &mut Model) {
    let area = frame.area();
    let rows = |count: usize| u16::try_from(count.clamp(1, MOST)).unwrap_or(1) + 1;
    let most = |area: Rect, wanted: u16| wanted.min(area.height / 3);
    let middle = rows(model.queues.len().max(model.models.len()));
    let failures = rows(model.failures.len().min(3));
    let [head, workers, between, tasks, failed, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(most(area, rows(model.workers.len()))),
        Constraint::Length(most(area, middle)),
        Constraint::Min(3),
        Constraint::Length(most(area, failures)),
        Constraint::Length(1),
    ])
    .areas(area);
    draw_head(frame, head, model);
    draw_workers(frame, workers, model);
    if model.models.is_empty() {
        draw_queues(frame, between, model);
    } else {
        let [queues, models] = Layout::horizontal([Constraint::Percentage(38), Constraint::Percentage(62)])
            .spacing(1)
            .areas(between);
        draw_queues(frame, queues, model);
        draw_models(frame, models, model);
    }
    draw_tasks(frame, tasks, model);
    draw_failures(frame, failed, model);
    draw_foot(frame, foot, model);
    draw_popup(frame, area, model);
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let running: usize = model.workers.values().map(|worker| worker.running).sum();
    let rate: f64 = model.workers.values().map(|worker| worker.rate).sum();
    let tokens: f64 = model.models.values().map(|usage| usage.tokens_per_second).sum();
    let time = clock::local_time(model.now);
    let mut spans = vec![
        Span::raw("orchestra top").bold(),
        Span::raw(format!(
            "  {}  {} workers  {running} running",
            time.split('.').next().unwrap_or_default(),
            model.workers.len()
        )),
    ];
    // What went wrong comes first: the end of the line may be cut off.
    if model.failed > 0 {
        spans.push(Span::raw(format!("  {} failed", model.failed)).red());
    }
    if model.retried > 0 {
        spans.push(Span::raw(format!("  {} retried", model.retried)).yellow());
    }
    spans.push(Span::raw(format!("  {rate:.1} tasks/s")));
    if !model.models.is_empty() {
        spans.push(Span::raw(format!("  {tokens:.1} tok/s")));
    }
    frame.render_widget(Line::from(spans), area);
}

/// A column: its title, its width, and how many columns of the terminal there must be for it to be shown.
struct Column(&'static str, Constraint, u16);

/// A table of what there is room for: rather fewer columns than names that nobody can read.
fn table(area: Rect, columns: &[Column], rows: impl IntoIterator<Item = (Vec<String>, Style)>) -> Table<'static> {
    let shown: Vec<bool> = columns.iter().map(|Column(_, _, least)| area.width >= *least).collect();
    let cells = |cells: Vec<String>| {
        let cells = cells.into_iter().zip(&shown).filter(|(_, shown)| **shown);
        Row::new(cells.map(|(cell, _)| Cell::from(cell)).collect::<Vec<_>>())
    };
    let titles = columns.iter().map(|Column(title, _, _)| (*title).to_owned()).collect();
    let widths = columns.iter().zip(&shown).filter(|(_, shown)| **shown);
    let widths: Vec<Constraint> = widths.map(|(Column(_, width, _), _)| *width).collect();
    let rows: Vec<Row<'static>> = rows.into_iter().map(|(row, style)| cells(row).style(style)).collect();
    Table::new(rows, widths).header(cells(titles).style(Style::new().reversed()))
}

fn draw_workers(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let rows = model.workers.iter().map(|(name, worker)| {
        let load = worker.load.map_or_else(|| "-".to_owned(), |load| format!("{load:.2}"));
        #[expect(clippy::cast_precision_loss, reason = "an age for people")]
        let up = age(worker.uptime as f64);
        // Only its heartbeats are known until it has answered.
        let known = |text: String| if worker.answered { text } else { "-".to_owned() };
        let row = vec![
            clean(name),
            known(format!("{}/{}", worker.running, worker.places)),
            known(worker.done.to_string()),
            known(format!("{:.1}", worker.rate)),
            load,
            known(up),
            clean(&worker.software),
        ];
        let style = Style::new();
        (row, if worker.silent { style.red() } else { style })
    });
    let columns = [
        Column("WORKER", Constraint::Fill(3), 0),
        Column("RUN/MAX", Constraint::Length(9), 0),
        Column("DONE", Constraint::Length(9), 30),
        Column("/S", Constraint::Length(7), 50),
        Column("LOAD", Constraint::Length(6), 60),
        Column("UP", Constraint::Length(8), 70),
        Column("SOFTWARE", Constraint::Fill(1), 100),
    ];
    frame.render_widget(table(area, &columns, rows), area);
    if model.workers.is_empty() && area.height > 1 {
        let text = if model.rounds > 0 {
            "no worker answers"
        } else {
            "asking …"
        };
        frame.render_widget(
            Line::from(text).dim(),
            Rect {
                y: area.y + 1,
                height: 1,
                ..area
            },
        );
    }
}

fn draw_queues(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let mut queues: Vec<_> = model.queues.iter().collect();
    // The longest first: those are what one looks for.
    queues.sort_by_key(|(name, queue)| (std::cmp::Reverse(queue.waiting), (*name).clone()));
    let rows = queues
        .into_iter()
        .map(|(name, queue)| vec![clean(name), queue.waiting.to_string(), queue.consumers.to_string()])
        .map(|row| (row, Style::new()));
    let columns = [
        Column("QUEUE", Constraint::Fill(1), 0),
        Column("WAITING", Constraint::Length(8), 0),
        Column("WORKERS", Constraint::Length(7), 28),
    ];
    frame.render_widget(table(area, &columns, rows), area);
}

fn draw_models(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let rows = model.models.iter().map(|(name, usage)| {
        let row = vec![
            clean(name),
            usage.running.to_string(),
            format!("{:.1}", usage.tokens_per_second),
            format!("{}/{}", usage.succeeded, usage.failed),
            short(usage.read),
            short(usage.written),
        ];
        (row, Style::new())
    });
    let columns = [
        Column("MODEL", Constraint::Fill(1), 0),
        Column("RUN", Constraint::Length(4), 24),
        Column("TOKEN/S", Constraint::Length(7), 0),
        Column("OK/BAD", Constraint::Length(8), 32),
        Column("IN", Constraint::Length(6), 46),
        Column("OUT", Constraint::Length(6), 46),
    ];
    frame.render_widget(table(area, &columns, rows), area);
}

fn draw_tasks(frame: &mut Frame<'_>, area: Rect, model: &mut Model) {
    let rows: Vec<_> = model
        .tasks()
        .into_iter()
        .map(|task| {
            let long = model.age(task).map_or_else(|| "-".to_owned(), age);
            let arguments = format!("{} {}", task.args, task.kwargs);
            let row = vec![
                long,
                clean(&task.name),
                clean(&task.id),
                clean(&task.worker),
                clean(&arguments),
            ];
            (row, Style::new())
        })
        .collect();
    let empty = rows.is_empty();
    let columns = [
        Column("AGE", Constraint::Length(7), 0),
        Column("TASK", Constraint::Fill(3), 0),
        Column("ID", Constraint::Length(if area.width >= 120 { 36 } else { 9 }), 44),
        Column("WORKER", Constraint::Fill(2), 36),
        Column("ARGUMENTS", Constraint::Fill(3), 60),
    ];
    let table = table(area, &columns, rows).row_highlight_style(Style::new().bold().on_blue());
    frame.render_stateful_widget(table, area, &mut model.table);
    if empty && area.height > 1 {
        let asked = model.workers.values().all(|worker| worker.answered) && model.rounds > 0;
        frame.render_widget(
            Line::from(if asked { "nothing runs" } else { "asking …" }).dim(),
            Rect {
                y: area.y + 1,
                height: 1,
                ..area
            },
        );
    }
}

fn draw_failures(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let mut lines = vec![Line::from(format!("{:<width$}", "FAILED", width = usize::from(area.width))).reversed()];
    if model.failures.is_empty() {
        let text = if model.events {
            "nothing failed since top runs"
        } else {
            "no task events come: e asks workers to send them"
        };
        lines.push(Line::from(text).dim());
    }
    lines.extend(model.failures.iter().map(|line| Line::from(clean(line)).red()));
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_foot(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let line = match (&model.trouble, &model.notice) {
        (Some(trouble), _) => Line::from(format!("{} · trying again", clean(trouble))).red().bold(),
        (None, Some((notice, _))) => Line::from(clean(notice)).yellow(),
        (None, None) => {
            let keys = format!(
                "q quit  ↑↓ choose  enter look  r revoke  s sort: {}  e events  ? help",
                model.sort.name()
            );
            let wide = usize::from(area.width) > keys.chars().count() + model.broker.chars().count() + 3;
            let place = if wide {
                format!("   {}", clean(&model.broker))
            } else {
                String::new()
            };
            Line::from(keys + &place).dim()
        }
    };
    frame.render_widget(line, area);
}

fn draw_popup(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let (title, lines) = match &model.popup {
        Popup::None => return,
        Popup::Help => (" help ", help()),
        Popup::Task(task) => (" task ", about(task, model)),
        Popup::Revoke(task) => (
            " revoke ",
            vec![
                format!("End {}[{}] on {}?", task.name, task.id, task.worker),
                "It is revoked everywhere, and ended where it runs.".to_owned(),
                String::new(),
                "y yes   any other key: no".to_owned(),
            ],
        ),
    };
    let width = (area.width.saturating_sub(4)).min(76);
    let inside = usize::from(width.saturating_sub(4)).max(1);
    let needed: usize = lines
        .iter()
        .map(|line| line.chars().count().div_ceil(inside).max(1))
        .sum();
    let height = u16::try_from(needed + 2).unwrap_or(u16::MAX).min(area.height);
    let place = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    let lines: Vec<Line<'_>> = lines.iter().map(|line| Line::from(clean(line))).collect();
    frame.render_widget(Clear, place);
    let text = Paragraph::new(lines)
        .wrap(Wrap { trim: false })
        .block(Block::bordered().title(title));
    frame.render_widget(text, place);
}

fn help() -> Vec<String> {
    [
        "q, Esc, Ctrl-C   quit",
        "up, down, j, k   choose a task",
        "enter            all of a task",
        "r                revoke it, after a question",
        "s                sort tasks by age, name or worker",
        "e                ask workers to send task events",
        "",
        "Red workers have not been heard of for some heartbeats. IN and OUT are",
        "tokens; TOKEN/S counts pieces of answers as they come.",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn about(task: &Task, model: &Model) -> Vec<String> {
    let long = model.age(task).map_or_else(|| "-".to_owned(), age);
    vec![
        format!("task    {}", task.name),
        format!("id      {}", task.id),
        format!("worker  {}", task.worker),
        format!("queue   {}", task.queue),
        format!("runs    {long}"),
        format!("args    {}", task.args),
        format!("kwargs  {}", task.kwargs),
    ]
}

/// What others wrote must not move the cursor.
fn clean(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect()
}

/// `950`, `12.3k`, `4.5M`.
fn short(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let number = count as f64;
    match count {
        0..1000 => count.to_string(),
        1000..1_000_000 => format!("{:.1}k", number / 1e3),
        _ => format!("{:.1}M", number / 1e6),
    }
}
