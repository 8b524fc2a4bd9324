//! What was measured, as a table in Markdown.

use std::fmt::Write as _;

use crate::measure::{Comparison, Row};

/// One line of what was compared, and one row for each grain and place.
pub(crate) fn table(comparison: &Comparison) -> String {
    let (disk, data) = (comparison.disk_bytes as f64, comparison.data_bytes as f64);
    let mut text = format!(
        "data: {:.2} GB in {} chunks; zeros, left out everywhere below: {:.2} GB; most memory used: {}\n\n",
        data / 1e9,
        comparison.data_chunks,
        (disk - data) / 1e9,
        most_memory().unwrap_or_else(|| "unknown".to_owned()),
    );
    text.push_str(
        "| grain | found at | missing % | once % | LZ4 MB | stretches | chunks % | chunks' LZ4 MB ",
    );
    text.push_str("| blocks/GB | index MB/GB | cut s/GB | hash s/GB |\n|");
    text.push_str(&"---|".repeat(12));
    text.push('\n');
    for row in &comparison.rows {
        line(row, data, comparison.data_chunks as f64, &mut text);
    }
    text
}

fn line(row: &Row, data: f64, chunks: f64, text: &mut String) {
    let share = |part: u64, all: f64| {
        if all > 0.0 {
            part as f64 / all * 100.0
        } else {
            0.0
        }
    };
    let gb = (row.cost.bytes as f64 / 1e9).max(f64::MIN_POSITIVE);
    writeln!(
        text,
        "| {} | {} | {:.1} | {:.1} | {:.0} | {} | {:.1} | {:.0} | {:.0} | {:.2} | {:.2} | {:.2} |",
        row.grain,
        row.at,
        share(row.missing_bytes, data),
        share(row.missing_once_bytes, data),
        row.missing_lz4_bytes as f64 / 1e6,
        row.stretches,
        share(row.chunks, chunks),
        row.chunks_lz4_bytes as f64 / 1e6,
        row.cost.blocks as f64 / gb,
        row.cost.index_bytes as f64 / 1e6 / gb,
        row.cost.cut_cpu_s / gb,
        row.cost.hash_cpu_s / gb,
    )
    .expect("a string takes everything");
}

/// This process's most memory, where Linux says it.
fn most_memory() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(format!("{} MB", kib * 1024 / 1_000_000))
}
