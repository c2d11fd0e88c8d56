//! A table as text or as Markdown.

use std::fmt::{Display, Write as _};

/// The first row is the header, the first column names the rows.
pub(crate) struct Table(Vec<Vec<String>>);

// === impl Table ===

impl Table {
    /// A table with this header.
    pub(crate) fn new(head: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut table = Self(Vec::new());
        table.add(head);
        table
    }

    /// Adds a row, with as many cells as the header.
    pub(crate) fn add(&mut self, row: impl IntoIterator<Item = impl Into<String>>) {
        self.0.push(row.into_iter().map(Into::into).collect());
    }

    /// Formats the whole table.
    pub(crate) fn text(&self, markdown: bool) -> String {
        let columns = self.0.first().map_or(0, Vec::len);
        let widths: Vec<usize> = (0..columns).map(|column| self.width(column)).collect();
        let mut text = String::new();
        for (number, row) in self.0.iter().enumerate() {
            let mut cells = Vec::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                cells.push(match column {
                    0 => format!("{cell:<width$}"),
                    _ => format!("{cell:>width$}"),
                });
            }
            put(&mut text, markdown, &cells);
            if number == 0 {
                let rules = widths.iter().enumerate();
                let rules = rules.map(|(column, width)| match (markdown, column) {
                    (false, _) => "─".repeat(*width),
                    (true, 0) => "-".repeat(*width),
                    (true, _) => format!("{}:", "-".repeat(width.saturating_sub(1))),
                });
                put(&mut text, markdown, &rules.collect::<Vec<_>>());
            }
        }
        text
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.0.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    }
}

/// A number with commas between thousands.
pub(crate) fn grouped(number: impl Display) -> String {
    let text = number.to_string();
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}

fn put(text: &mut String, markdown: bool, cells: &[String]) {
    let line = match markdown {
        true => format!("| {} |", cells.join(" | ")),
        false => cells.join("   ").trim_end().to_owned(),
    };
    writeln!(text, "{line}").expect("writing into memory never fails");
}
