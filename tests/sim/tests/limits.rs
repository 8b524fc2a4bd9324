//! The operators' table of limits says what the code says: each row of `docs/LIMITS.md` names a file and a constant,
//! and this test reads the constant's value in the source.

use std::{collections::BTreeMap, fs, path::Path};

const PAGE: &str = include_str!("../../../docs/LIMITS.md");

/// The least and the most rows: a table that lost its rows, or that nobody reads any more.
const ROWS: std::ops::RangeInclusive<usize> = 20..=100;

/// A row of a table: the value, and where it is defined.
struct Row<'a> {
    value: &'a str,
    file: &'a str,
    name: &'a str,
}

fn rows() -> Vec<Row<'static>> {
    let row = |line: &'static str| {
        let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
        let [_, value, _, home, ""] = cells[..] else {
            panic!("a row has four cells: {line}");
        };
        let home: Vec<&str> = home.split('`').collect();
        let ["", file, " ", name, ""] = home[..] else {
            return None;
        };
        Some(Row { value, file, name })
    };
    PAGE.lines().filter_map(row).collect()
}

/// The value of a cell, in bytes, milliseconds, or as a number.
fn shown(cell: &str) -> u64 {
    let (number, unit) = cell.split_once(' ').unwrap_or((cell, ""));
    let number: u64 = number
        .replace(',', "")
        .parse()
        .expect("a cell has a number");
    let unit = match unit {
        "" | "B" | "ms" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        other => panic!("{cell}: what is {other}?"),
    };
    number * unit
}

/// The expression by which a source defines a constant, or the length of a message in `framed!`.
fn defined<'a>(source: &'a str, name: &str) -> &'a str {
    let constant = format!("const {name}: ");
    let framed = format!("    {name}: ");
    let expression = |line: &'a str| {
        if let Some((_, rest)) = line.split_once(&constant) {
            return Some(rest.split_once(" = ")?.1.split_once(';')?.0);
        }
        Some(line.strip_prefix(&framed)?.split_once(", \"")?.0)
    };
    let mut found = source.lines().filter_map(expression);
    let first = found.next();
    assert!(
        found.next().is_none(),
        "{name} is defined twice in one file"
    );
    first.unwrap_or_else(|| panic!("{name} isn't defined where the page says"))
}

/// The value of an expression of whole numbers, in the unit of [`shown`].
fn value(expression: &str) -> u64 {
    if let Some((of, rest)) = expression.split_once('(')
        && let Some(unit) = of.strip_prefix("Duration::from_")
    {
        let unit = match unit {
            "millis" => 1,
            "secs" => 1_000,
            "mins" => 60_000,
            "hours" => 3_600_000,
            other => panic!("{expression}: what is {other}?"),
        };
        return unit * value(rest.trim_end_matches(')'));
    }
    if let Some((left, right)) = expression.split_once(" << ") {
        return value(left) << value(right);
    }
    let number = expression.replace('_', "");
    number
        .parse()
        .unwrap_or_else(|_| panic!("{expression} isn't a number"))
}

#[test]
fn the_page_of_limits_says_what_the_code_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut sources = BTreeMap::new();
    let rows = rows();
    assert!(ROWS.contains(&rows.len()), "{} rows", rows.len());
    for row in rows {
        let source = sources.entry(row.file).or_insert_with(|| {
            fs::read_to_string(root.join(row.file))
                .unwrap_or_else(|error| panic!("{}: {error}", row.file))
        });
        let expression = defined(source, row.name);
        assert_eq!(
            shown(row.value),
            value(expression),
            "{} {} is {expression}, and the page says {}",
            row.file,
            row.name,
            row.value
        );
    }
}
