//! Progress on stderr while `--wait` waits. On a terminal this is a picture that is redrawn, elsewhere a line every few
//! seconds. The content is made in [`crate::frame`]; this file only draws it.

use std::{io::IsTerminal as _, time::Duration};

use client::view::ImageView;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::{
    frame::{self, Contact, Room},
    say::tell,
};

/// The time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// The progress that is shown.
pub(crate) enum Show {
    /// A picture on a terminal. The bar's message is the whole picture.
    Picture(ProgressBar),
    Lines {
        next: Instant,
    },
}

impl Show {
    pub(crate) fn new() -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if dumb || !std::io::stderr().is_terminal() {
            return Self::Lines {
                next: Instant::now(),
            };
        }
        let target = ProgressDrawTarget::stderr_with_hz(4);
        let picture = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            picture.set_style(style);
        }
        Self::Picture(picture)
    }

    pub(crate) fn update(&mut self, image: &ImageView, contact: &Contact) {
        match self {
            Self::Picture(picture) => picture.set_message(drawn(image, contact)),
            Self::Lines { next } => {
                if Instant::now() >= *next {
                    *next = Instant::now() + LINE_EVERY;
                    tell(&format!("{}\n", frame::line(image, contact)));
                }
            }
        }
    }

    /// Shows the last state, which stays on the screen.
    pub(crate) fn finish(&mut self, image: &ImageView, contact: &Contact) {
        match self {
            Self::Picture(picture) => picture.abandon_with_message(drawn(image, contact)),
            Self::Lines { .. } => tell(&format!("{}\n", frame::line(image, contact))),
        }
    }
}

fn drawn(image: &ImageView, contact: &Contact) -> String {
    frame::picture(image, contact, room()).join("\n")
}

/// The terminal's present size, because the terminal may have been resized. 80 by 24 where the size isn't known.
fn room() -> Room {
    let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok();
    let size = size.filter(|size| size.ws_col > 0 && size.ws_row > 0);
    size.map_or(
        Room {
            columns: 80,
            rows: 24,
        },
        |size| Room {
            columns: size.ws_col.into(),
            rows: size.ws_row.into(),
        },
    )
}
