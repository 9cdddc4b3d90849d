//! What the user has chosen, and what keys do to it. Pure.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::widgets::TableState;

use super::model::{Model, Rates};

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// SYNs per second.
    #[default]
    Syns,
    /// Challenges per second.
    Challenged,
    /// Admissions per second.
    Admitted,
    /// Drops per second.
    Dropped,
    /// How near the half-open count is to the high watermark.
    HalfOpen,
    /// The name.
    Name,
    /// As the configuration has them.
    File,
}

/// In the order of the key.
const SORTS: [(Sort, &str); 7] = [
    (Sort::Syns, "SYN/s"),
    (Sort::Challenged, "challenged"),
    (Sort::Admitted, "admitted"),
    (Sort::Dropped, "dropped"),
    (Sort::HalfOpen, "half-open"),
    (Sort::Name, "name"),
    (Sort::File, "file order"),
];

/// What is to be done after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Draw again.
    Draw,
    /// Draw again, on an empty screen.
    Redraw,
    /// Stop until the shell says otherwise.
    Suspend,
    /// End.
    Quit,
}

/// The choices.
#[derive(Clone, Debug, Default)]
pub struct Ui {
    /// What rows are sorted by.
    pub sort: Sort,
    /// The service with a detail pane, by its name: it stays the same when rows move.
    pub selected: Option<String>,
    /// Whether the help is shown.
    pub help: bool,
    /// What is shown instead of what goes on.
    pub paused: Option<Box<Model>>,
    /// Where the table is scrolled to.
    pub table: TableState,
    /// Rows of the table at the last drawing: how far a page goes.
    pub page: usize,
}

impl Sort {
    /// Its name.
    pub fn name(self) -> &'static str {
        SORTS
            .iter()
            .find(|(sort, _)| *sort == self)
            .map_or("", |(_, name)| name)
    }

    fn next(self, by: usize) -> Self {
        let at = SORTS.iter().position(|(sort, _)| *sort == self);
        SORTS[(at.unwrap_or(0) + by) % SORTS.len()].0
    }

    /// Positions of the services in the snapshot, in this order.
    pub fn order(self, model: &Model) -> Vec<usize> {
        let mut order: Vec<usize> = (0..model.snapshot().services.len()).collect();
        let rates = |at: usize| -> Option<Rates> { model.service(at)?.1.rates };
        let by = |value: fn(Rates) -> f64| {
            move |a: &usize, b: &usize| {
                let value = |at: usize| rates(at).map_or(-1.0, value);
                value(*b).total_cmp(&value(*a))
            }
        };
        let services = &model.snapshot().services;
        // Stable: what is equal stays in the order of the file.
        match self {
            Self::Syns => order.sort_by(by(|r| r.syns)),
            Self::Challenged => order.sort_by(by(|r| r.challenged)),
            Self::Admitted => order.sort_by(by(|r| r.admitted)),
            Self::Dropped => order.sort_by(by(|r| r.dropped)),
            Self::HalfOpen => order.sort_by(|a, b| {
                let fill = |at: usize| {
                    let service = &services[at];
                    service.half_open as f64 / f64::from(service.high.max(1))
                };
                fill(*b).total_cmp(&fill(*a))
            }),
            Self::Name => order.sort_by(|a, b| services[*a].name.cmp(&services[*b].name)),
            Self::File => {}
        }
        order
    }
}

impl Ui {
    /// Begins; a service that is the only one is selected.
    pub fn new(model: &Model) -> Self {
        let selected = match model.snapshot().services.as_slice() {
            [service] => Some(service.name.clone()),
            _ => None,
        };
        Self {
            selected,
            ..Self::default()
        }
    }

    /// What is shown where this goes on.
    pub fn shown<'a>(&'a self, live: &'a Model) -> &'a Model {
        self.paused.as_deref().unwrap_or(live)
    }

    /// Where the selected service is among `order`.
    pub fn position(&self, model: &Model, order: &[usize]) -> Option<usize> {
        let name = self.selected.as_deref()?;
        let services = &model.snapshot().services;
        order.iter().position(|at| services[*at].name == name)
    }

    /// A key was pressed.
    pub fn key(&mut self, key: KeyEvent, live: &Model) -> Next {
        if key.kind == KeyEventKind::Release {
            return Next::Draw;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Next::Quit,
                KeyCode::Char('z') => Next::Suspend,
                KeyCode::Char('l') => Next::Redraw,
                _ => Next::Draw,
            };
        }
        match key.code {
            KeyCode::Char('q') => return Next::Quit,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.help = !self.help,
            // Any other key leaves the help, and does nothing else.
            _ if self.help => self.help = false,
            KeyCode::Char('s') => self.sort = self.sort.next(1),
            KeyCode::Char('S') => self.sort = self.sort.next(SORTS.len() - 1),
            KeyCode::Char('p' | ' ') => {
                self.paused = match self.paused {
                    Some(_) => None,
                    None => Some(Box::new(live.clone())),
                }
            }
            KeyCode::Esc => self.selected = None,
            KeyCode::Down | KeyCode::Char('j') | KeyCode::Enter => self.go(live, 1),
            KeyCode::Up | KeyCode::Char('k') => self.go(live, -1),
            KeyCode::PageDown => self.go(live, self.page.max(1) as isize),
            KeyCode::PageUp => self.go(live, -(self.page.max(1) as isize)),
            KeyCode::Home => self.go(live, isize::MIN),
            KeyCode::End => self.go(live, isize::MAX),
            _ => {}
        }
        Next::Draw
    }

    /// Selects so many rows further down; the first one where none was.
    fn go(&mut self, live: &Model, by: isize) {
        let model = self.shown(live);
        let order = self.sort.order(model);
        let last = order.len().saturating_sub(1);
        let to = match (self.position(model, &order), by) {
            (_, isize::MAX) => last,
            (None, _) => 0,
            (Some(from), by) => from.saturating_add_signed(by).min(last),
        };
        let name = order
            .get(to)
            .map(|at| model.snapshot().services[*at].name.clone());
        self.selected = name;
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::top::model::tests::{later, snapshot};

    fn press(ui: &mut Ui, model: &Model, code: KeyCode) -> Next {
        ui.key(KeyEvent::from(code), model)
    }

    fn model() -> Model {
        let (mut first, t) = (snapshot(), Instant::now());
        // The busiest is the last in the file.
        first.services.rotate_left(1);
        let mut second = first.clone();
        second.services[2].syns += 50;
        second.services[1].syns += 10;
        let mut model = Model::new(first, t);
        model.update(second, t + Duration::from_secs(1));
        model
    }

    fn names(model: &Model, sort: Sort) -> Vec<&str> {
        let services = &model.snapshot().services;
        let order = sort.order(model);
        order.iter().map(|at| services[*at].name.as_str()).collect()
    }

    #[test]
    fn rows_are_sorted_and_ties_keep_the_order_of_the_file() {
        let model = model();
        assert_eq!(names(&model, Sort::File), ["rest", "forwarded", "web"]);
        assert_eq!(names(&model, Sort::Syns), ["web", "forwarded", "rest"]);
        assert_eq!(names(&model, Sort::Dropped), ["rest", "forwarded", "web"]);
        assert_eq!(names(&model, Sort::HalfOpen), ["forwarded", "web", "rest"]);
        assert_eq!(names(&model, Sort::Name), ["forwarded", "rest", "web"]);
    }

    #[test]
    fn the_key_goes_through_all_orders_and_back() {
        let model = model();
        let mut ui = Ui::new(&model);
        let mut seen = Vec::new();
        for _ in 0..SORTS.len() {
            seen.push(ui.sort.name());
            press(&mut ui, &model, KeyCode::Char('s'));
        }
        assert_eq!(seen, SORTS.map(|(_, name)| name));
        assert_eq!(ui.sort, Sort::Syns);
        press(&mut ui, &model, KeyCode::Char('S'));
        assert_eq!(ui.sort, Sort::File);
    }

    #[test]
    fn the_selection_follows_its_service() {
        let model = model();
        let mut ui = Ui::new(&model);
        assert_eq!(ui.selected, None);
        for (key, expected) in [
            (KeyCode::Down, Some("web")),
            (KeyCode::Down, Some("forwarded")),
            (KeyCode::Char('s'), Some("forwarded")),
            (KeyCode::Char('S'), Some("forwarded")),
            (KeyCode::PageDown, Some("rest")),
            (KeyCode::Down, Some("rest")),
            (KeyCode::Home, Some("web")),
            (KeyCode::Up, Some("web")),
            (KeyCode::End, Some("rest")),
            (KeyCode::Up, Some("forwarded")),
            (KeyCode::Esc, None),
            (KeyCode::Up, Some("web")),
        ] {
            press(&mut ui, &model, key);
            assert_eq!(ui.selected.as_deref(), expected, "{key:?}");
        }
    }

    #[test]
    fn without_services_there_is_nothing_to_select() {
        let mut none = snapshot();
        none.services.clear();
        let model = Model::new(none, Instant::now());
        let mut ui = Ui::new(&model);
        for key in [KeyCode::Down, KeyCode::End, KeyCode::PageUp] {
            press(&mut ui, &model, key);
            assert_eq!(ui.selected, None);
        }
    }

    #[test]
    fn the_only_service_is_selected() {
        let mut one = snapshot();
        one.services.truncate(1);
        let ui = Ui::new(&Model::new(one, Instant::now()));
        assert_eq!(ui.selected.as_deref(), Some("web"));
    }

    #[test]
    fn a_pause_keeps_what_is_shown() {
        let mut live = model();
        let mut ui = Ui::new(&live);
        press(&mut ui, &live, KeyCode::Char(' '));
        let next = later(live.snapshot(), "challenged", 9);
        live.update(next, live.at() + Duration::from_secs(1));
        assert!(ui.shown(&live).at() < live.at());
        press(&mut ui, &live, KeyCode::Char('p'));
        assert_eq!(ui.shown(&live).at(), live.at());
    }

    #[test]
    fn help_is_left_by_any_key() {
        let model = model();
        let mut ui = Ui::new(&model);
        press(&mut ui, &model, KeyCode::Char('?'));
        assert!(ui.help);
        press(&mut ui, &model, KeyCode::Char('s'));
        assert_eq!((ui.help, ui.sort), (false, Sort::Syns));
        press(&mut ui, &model, KeyCode::Char('?'));
        assert_eq!(press(&mut ui, &model, KeyCode::Char('q')), Next::Quit);
    }

    #[test]
    fn control_keys() {
        let model = model();
        let mut ui = Ui::new(&model);
        for (key, next) in [
            ('c', Next::Quit),
            ('z', Next::Suspend),
            ('l', Next::Redraw),
            ('q', Next::Draw),
        ] {
            let key = KeyEvent::new(KeyCode::Char(key), KeyModifiers::CONTROL);
            assert_eq!(ui.key(key, &model), next);
        }
    }
}
