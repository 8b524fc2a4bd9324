//! Tables for people: a header, columns as wide as what stands in them, and names cut in the middle where a terminal is
//! too narrow for whole ones.

use crate::width::middle_cut;

/// Columns between two cells.
const GAP: usize = 2;
/// A name is never cut to fewer letters than this.
const LEAST_NAME: usize = 12;

/// A table. The first cell of each row is a name.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    header: [&'static str; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) const fn new(header: [&'static str; N]) -> Self {
        Self {
            header,
            rows: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, row: [String; N]) {
        self.rows.push(row);
    }

    /// The table's lines, for a terminal with so many columns. `None`: names are never cut.
    pub(crate) fn text(&self, columns: Option<usize>) -> String {
        let mut widths = self.header.map(|title| title.chars().count());
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let all: usize = widths.iter().sum::<usize>() + GAP * N.saturating_sub(1);
        if let (Some(columns), Some(name)) = (columns, widths.first_mut()) {
            let too_many = all.saturating_sub(columns);
            *name = (*name).min(name.saturating_sub(too_many).max(LEAST_NAME));
        }
        let mut text = line(&self.header.map(str::to_owned), &widths);
        for row in &self.rows {
            text += &line(row, &widths);
        }
        text
    }
}

/// A row in its line. What is behind the last letter is left out.
fn line<const N: usize>(cells: &[String; N], widths: &[usize; N]) -> String {
    let mut line = String::new();
    for (at, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let cell = match at {
            0 => middle_cut(cell, *width),
            _ => cell.clone(),
        };
        let gap = if at == 0 { 0 } else { GAP };
        line += &format!("{:gap$}{cell:<width$}", "");
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table<3> {
        let mut table = Table::new(["HOST", "STATE", "ZONE"]);
        table.push(["mini-1".into(), "connected".into(), "berlin".into()]);
        table.push([
            "berlin-rack-07-shelf-3-mac-mini-m4pro-12".into(),
            "away".into(),
            String::new(),
        ]);
        table
    }

    #[test]
    fn columns_are_as_wide_as_what_stands_in_them() {
        let expected = "\
HOST                                      STATE      ZONE
mini-1                                    connected  berlin
berlin-rack-07-shelf-3-mac-mini-m4pro-12  away
";
        assert_eq!(table().text(None), expected);
        assert_eq!(table().text(Some(80)), expected);
    }

    #[test]
    fn a_name_is_cut_in_its_middle_where_the_terminal_is_narrow() {
        let expected = "\
HOST                   STATE      ZONE
mini-1                 connected  berlin
berlin-rac…i-m4pro-12  away
";
        assert_eq!(table().text(Some(40)), expected);
        for columns in 0..80 {
            let text = table().text(Some(columns));
            assert!(text.contains("mini-1 "), "{text}");
            let widest = text.lines().map(|line| line.chars().count()).max();
            // the other cells are never cut
            assert!(widest.unwrap() <= columns.max(LEAST_NAME + 19), "{text}");
        }
    }
}
