//! Checks what people see of a history: bars, lines and pictures are compared with the truth.

use super::*;

impl Play {
    /// No bar goes back while one staging lasts, whatever happens to the agents and the coordinator.
    pub(super) fn check_bars(&mut self) {
        let Some(shown) = &self.shown else { return };
        for (host, truth) in shown.hosts.iter().zip(&self.hosts) {
            let held = match host.state {
                HostState::Present => host.total_bytes,
                _ => host.held_bytes,
            };
            let at = format!("{} s: {host:?}", self.now / 1_000);
            if let Some((before, begun)) = self.before.get(&host.host) {
                let same = *begun == truth.begun_at_ms && truth.state != HostState::Gone;
                assert!(held >= *before || !same, "{at}: {before} before");
            }
            // a bar never claims bytes that were never there
            let most = match truth.state {
                HostState::Present | HostState::Installing => self.total,
                _ => truth.most,
            };
            if self.heard_at == self.now {
                assert!(held <= most, "{at}: {most} at most");
            }
            self.before
                .insert(host.host.clone(), (held, truth.begun_at_ms));
        }
    }

    pub(super) fn check_line(&self) {
        let (shown, contact) = (self.shown.as_ref().unwrap(), self.contact());
        let line = frame::line(shown, &contact);
        self.check_words(&line, shown, &contact);
        assert!(!line.contains('\n'));
    }

    /// Checks what the first line of a picture and the line in a pipe have in common.
    pub(super) fn check_words(&self, line: &str, shown: &ImageView, contact: &Contact) {
        let at = format!("{} s: {line}", self.now / 1_000);
        let sum = |of: fn(&HostProgress) -> u64| shown.hosts.iter().map(of).sum::<u64>();
        let held = sum(|host| match host.state {
            HostState::Present => host.total_bytes,
            _ => host.held_bytes,
        });
        let total = sum(|host| host.total_bytes);
        let present = shown
            .hosts
            .iter()
            .filter(|host| host.state == HostState::Present)
            .count();
        let head = format!(
            "{present} of {} hosts, {}% of {}",
            shown.hosts.len(),
            percent(held, total),
            Bytes(total)
        );
        assert!(line.starts_with(&head), "{at}; should begin with {head}");
        assert_eq!(percent(held, total) == 100, held == total, "{at}");
        let rate = sum(|host| host.bytes_per_second);
        let fresh = contact.away.is_none() && contact.heard_ago < LINE_FRESH;
        assert_eq!(line.contains("/s, "), fresh && rate > 0, "{at}");
        assert_eq!(line.contains("to go"), fresh && rate > 0, "{at}");
        match &contact.away {
            Some((since, _)) => {
                let (since, heard) = (Span(*since), Span(contact.heard_ago));
                let words = format!(
                    "can't be reached for {since}; staging goes on; last heard {heard} ago"
                );
                assert!(line.contains(&words), "{at}");
            }
            None => assert!(!line.contains("can't be reached"), "{at}"),
        }
        let away = shown.hosts.iter().filter(|host| !host.connected).count();
        assert_eq!(line.contains(&format!("{away} away")), away > 0, "{at}");
    }

    pub(super) fn check_picture(&self, room: Room) {
        let (shown, contact) = (self.shown.as_ref().unwrap(), self.contact());
        let picture = frame::picture(shown, &contact, room);
        let at = format!("{} s, {room:?}:\n{}", self.now / 1_000, picture.join("\n"));
        assert!(picture.len() < room.rows.max(4), "{at}");
        for line in &picture {
            assert!(line.chars().count() <= room.columns, "{at}\n{line}");
        }
        // at 80 columns, everything important about the fleet and each host is visible
        if room.columns < 80 {
            return;
        }
        let fresh = contact.away.is_none() && contact.heard_ago < LINE_FRESH;
        if !fresh {
            assert!(!at.contains("/s,"), "{at}");
        }
        // the line about the fleet is visible as a whole
        let said: Vec<&str> = picture.iter().take(4).map(String::as_str).collect();
        let said = said.join(" ");
        let line = frame::line(shown, &contact);
        let counts = line
            .split_once("; ")
            .map_or(line.as_str(), |(counts, _)| counts);
        assert!(said.starts_with(counts), "{at}");
        assert_eq!(said.contains("last heard"), !fresh, "{at}");
        let rows = picture.iter().filter(|line| line.starts_with("mini-"));
        let mut drawn = 0;
        for row in rows {
            drawn += 1;
            let (name, rest) = row.split_once(' ').unwrap();
            let host = shown.hosts.iter().find(|host| host.host == name).unwrap();
            let (bar, words) = rest
                .trim_start_matches(['[', ' '])
                .split_once(']')
                .map_or(("", ""), |both| both);
            let held = match host.state {
                HostState::Present => host.total_bytes,
                _ => host.held_bytes,
            };
            let percent = percent(held, host.total_bytes);
            assert!(
                words
                    .trim_start()
                    .starts_with(&format!("{percent}% {}", host.state.as_str())),
                "{at}\n{row}"
            );
            // the bar is full when all bytes are there, and not before
            assert_eq!(
                !bar.is_empty() && bar.chars().all(|c| c == '='),
                percent == 100,
                "{at}\n{row}"
            );
            if fresh && host.bytes_per_second > 0 {
                let rate = format!(
                    "{}/s, {} to go",
                    Bytes(host.bytes_per_second),
                    Span::seconds(host.eta_seconds.unwrap())
                );
                assert!(row.contains(&rate), "{at}\n{row}");
            }
            if let (HostState::Staging, Some(reason)) = (host.state, &host.reason)
                && **reason != *"staging"
            {
                assert!(row.contains(&**reason), "{at}\n{row}");
            }
        }
        if drawn < shown.hosts.len() {
            let rest = format!("and {} more: ", shown.hosts.len() - drawn);
            assert!(picture.last().unwrap().starts_with(&rest), "{at}");
        }
    }
}
