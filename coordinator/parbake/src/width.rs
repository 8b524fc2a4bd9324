//! Lines that fit a terminal: broken at spaces, and never within a word, so that digests and references can be copied.
//! What goes into a file or a pipe keeps its lines.

use std::os::fd::AsFd;

/// The columns by which a broken line goes on further to the right than it began.
const HANGS: usize = 4;
/// A terminal that is narrower than this gets lines for this width.
const LEAST: usize = 20;

/// The columns of a terminal; `None` where this is none, or doesn't say.
pub(crate) fn columns(of: &impl AsFd) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(of).ok()?;
    (size.ws_col > 0).then(|| usize::from(size.ws_col))
}

/// The text with each line broken where it is longer than `columns`. `None` leaves the lines as they are.
pub(crate) fn fitted(text: String, columns: Option<usize>) -> String {
    let Some(columns) = columns.map(|columns| columns.max(LEAST)) else {
        return text;
    };
    let lines = text.split_inclusive('\n');
    lines.flat_map(|line| broken(line, columns)).collect()
}

/// A line with its end, in as many lines as it takes.
fn broken(line: &str, columns: usize) -> Vec<String> {
    let body = line.strip_suffix('\n').unwrap_or(line);
    if body.chars().count() <= columns {
        return vec![line.to_owned()];
    }
    let begins = body.chars().take_while(|letter| *letter == ' ').count();
    let rest = " ".repeat((begins + HANGS).min(columns / 2));
    let mut lines: Vec<String> = Vec::new();
    for part in parts(&body[begins..]) {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + part.chars().count() <= columns => {
                line.push(' ');
                line.push_str(&part);
            }
            Some(_) => lines.push(format!("{rest}{}", part.trim_start())),
            None => lines.push(format!("{}{part}", &body[..begins])),
        }
    }
    let last = lines.len().saturating_sub(1);
    for (at, of) in lines.iter_mut().enumerate() {
        of.truncate(of.trim_end().len());
        if at < last || line.ends_with('\n') {
            of.push('\n');
        }
    }
    lines
}

/// Breaks a text into lines at spaces, but not between a number and its unit. There are at most `most` lines, and the
/// last line gets the rest.
pub(crate) fn wrapped(text: &str, columns: usize, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts(text) {
        let many = lines.len() >= most;
        match lines.last_mut() {
            Some(line) if many || line.chars().count() + 1 + part.chars().count() <= columns => {
                *line = format!("{line} {part}");
            }
            _ => lines.push(part),
        }
    }
    lines
}

/// The words of a text, each number with its unit.
fn parts(text: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match parts.last_mut() {
            Some(number) if number.ends_with(|end: char| end.is_ascii_digit()) => {
                *number = format!("{number} {word}");
            }
            _ => parts.push(word.to_owned()),
        }
    }
    parts
}

/// The text in at most `columns` characters. A longer text loses its middle, because names of one rack begin alike, and
/// names of one kind end alike.
pub(crate) fn middle_cut(text: &str, columns: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= columns {
        return text.to_owned();
    }
    let kept = columns.saturating_sub(1);
    let (head, tail) = (kept / 2, kept - kept / 2);
    let begin = chars.iter().take(head);
    let end = chars.iter().skip(chars.len() - tail);
    begin.chain(['…'].iter()).chain(end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(columns: usize, text: &str) -> String {
        fitted(text.to_owned(), Some(columns))
    }

    #[test]
    fn a_line_is_broken_at_spaces_and_goes_on_further_to_the_right() {
        let text = "  mini-1  21% of 140.0 GB: staging, 117.0 MB/s, 12 min to go\nshort\n";
        let expected = "  mini-1  21% of 140.0 GB:
      staging, 117.0 MB/s,
      12 min to go
short
";
        assert_eq!(at(28, text), expected);
        let fits = text.lines().next().unwrap().chars().count();
        assert_eq!(at(fits, text), text);
        assert_eq!(at(fits - 1, text).lines().count(), 3);
        assert_eq!(fitted(text.to_owned(), None), text);
    }

    #[test]
    fn a_digest_is_whole_however_narrow_the_terminal_is() {
        let digest = format!("sha256:{}", "0f".repeat(32));
        let text = format!("  recipe {digest} (34.1 MB), from the registry\n");
        let eighty = format!("  recipe {digest}\n      (34.1 MB), from the registry\n");
        assert_eq!(at(80, &text), eighty);
        for columns in 0..200 {
            assert!(at(columns, &text).contains(&digest), "{columns}");
        }
    }

    #[test]
    fn the_words_stay_the_same_at_any_width() {
        let text = "  a table  of 1  2 GB\n\nand text that has no end";
        let words = |text: &str| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        for columns in 0..60 {
            let fitted = at(columns, text);
            assert_eq!(words(&fitted), words(text), "{columns}");
            assert!(
                fitted
                    .lines()
                    .all(|line| line.chars().count() <= columns.max(LEAST))
            );
        }
    }

    #[test]
    fn a_long_name_keeps_its_beginning_and_its_end() {
        assert_eq!(middle_cut("mini", 4), "mini");
        assert_eq!(middle_cut("mini-12", 6), "mi…-12");
        assert_eq!(middle_cut("größe-der-ecke", 7), "grö…cke");
    }
}
