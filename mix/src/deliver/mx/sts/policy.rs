//! What a policy says, and where the name service says that there is one (RFC 8461 3.1, 3.2).

use std::fmt::Write as _;
use std::time::Duration;

use crate::packet::HostName;

/// What a policy may promise at the most, in seconds: a year (RFC 8461 3.2).
pub(super) const MAX_AGE: u64 = 31_557_600;
/// And at the least: as long as one that was not to be had is not asked for again. Else it would be fetched for each mail.
pub(super) const LEAST_AGE: u64 = 5 * 60;
/// Patterns of one policy that are looked at. Large providers have a dozen.
const MAX_PATTERNS: usize = 64;
/// Characters of a pattern: a name of 253 (RFC 1035 2.3.4) and the dot that may end it. What is longer names nobody.
const MAX_PATTERN_LEN: usize = 254;
/// Characters of the name of a policy's version.
const MAX_ID_LEN: usize = 32;

/// How serious the promise is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Mail goes to no server that breaks it.
    Enforce,
    /// It is tried out: mail goes anywhere.
    Testing,
    /// There is none any more.
    None,
}

/// What a domain promises.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::deliver::mx) struct Policy {
    pub(super) mode: Mode,
    /// The names of its servers, in lower case. A star stands for one label.
    pub(super) patterns: Vec<String>,
    pub(super) max_age: Duration,
}

/// Why a text is no policy. Blames the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidPolicy {
    /// Of another kind, or none.
    #[error("it does not begin with `version: STSv1`")]
    Version,
    /// None of the three.
    #[error("its mode is missing or unknown")]
    Mode,
    /// No number of seconds.
    #[error("its max_age is missing or no number of seconds")]
    MaxAge,
    /// Nobody could take the mail.
    #[error("it names no server")]
    NoServer,
}

impl Policy {
    /// Reads a policy (RFC 8461 3.2). Of a key that stands there twice the first counts, but for `mx`.
    pub(super) fn parse(text: &str) -> Result<Self, InvalidPolicy> {
        let mut lines = text.lines().filter(|line| !line.trim().is_empty()).map(|line| {
            let (key, value) = line.split_once(':').unwrap_or((line, ""));
            (key.trim(), value.trim())
        });
        if lines.next() != Some(("version", "STSv1")) {
            return Err(InvalidPolicy::Version);
        }
        let lines: Vec<_> = lines.collect();
        let value = |wanted| lines.iter().find(|(key, _)| *key == wanted).map(|(_, value)| *value);
        let mode = match value("mode") {
            Some("enforce") => Mode::Enforce,
            Some("testing") => Mode::Testing,
            Some("none") => Mode::None,
            _ => return Err(InvalidPolicy::Mode),
        };
        let seconds = value("max_age").filter(|age| !age.is_empty() && age.bytes().all(|digit| digit.is_ascii_digit()));
        // More digits than a number has are more than a year.
        let seconds = seconds.ok_or(InvalidPolicy::MaxAge)?.parse().unwrap_or(MAX_AGE).clamp(LEAST_AGE, MAX_AGE);
        let servers = lines.iter().filter(|(key, value)| *key == "mx" && (1..=MAX_PATTERN_LEN).contains(&value.len()));
        let patterns: Vec<_> = servers.take(MAX_PATTERNS).map(|(_, value)| value.to_ascii_lowercase()).collect();
        if patterns.is_empty() && mode != Mode::None {
            return Err(InvalidPolicy::NoServer);
        }
        Ok(Self { mode, patterns, max_age: Duration::from_secs(seconds) })
    }

    /// As a text that [`Policy::parse`] reads, with what else the caller has to say of it under keys of his own.
    pub(super) fn text(&self, more: &[(&str, String)]) -> String {
        let mode = match self.mode {
            Mode::Enforce => "enforce",
            Mode::Testing => "testing",
            Mode::None => "none",
        };
        let mut text = format!("version: STSv1\nmode: {mode}\nmax_age: {}\n", self.max_age.as_secs());
        let servers = self.patterns.iter().map(|pattern| ("mx", pattern));
        for (key, value) in more.iter().map(|(key, value)| (*key, value)).chain(servers) {
            writeln!(text, "{key}: {value}").expect("a String takes all");
        }
        text
    }

    /// Whether mail may go to no other server than it names, and to those by TLS with a good certificate alone.
    pub(in crate::deliver::mx) fn is_enforced(&self) -> bool {
        self.mode == Mode::Enforce
    }

    /// Whether it names this server (RFC 8461 4.1).
    pub(in crate::deliver::mx) fn names(&self, server: &HostName) -> bool {
        let name = server.as_str().trim_end_matches('.');
        self.patterns.iter().map(|pattern| pattern.trim_end_matches('.')).any(|pattern| {
            match (pattern.strip_prefix("*."), name.split_once('.')) {
                (Some(parent), Some((label, rest))) => !label.is_empty() && parent == rest,
                (Some(_), None) => false,
                (None, _) => pattern == name,
            }
        })
    }
}

/// The version of a policy that the texts beside a domain speak of. `None` where there is not one record of the kind (RFC
/// 8461 3.1).
pub(super) fn policy_id(texts: &[String]) -> Option<&str> {
    let mut records = texts.iter().filter_map(|text| {
        let rest = text.strip_prefix("v=STSv1")?.trim_start();
        rest.strip_prefix(';')
    });
    let (Some(record), None) = (records.next(), records.next()) else { return None };
    let id = record.split(';').find_map(|field| field.trim().strip_prefix("id="))?.trim();
    let is_id = (1..=MAX_ID_LEN).contains(&id.len()) && id.bytes().all(|octet| octet.is_ascii_alphanumeric());
    is_id.then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENFORCED: &str = "version: STSv1\nmode: enforce\nmx: mx.example\nmax_age: 86400\n";
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn host(name: &str) -> HostName {
        HostName::parse(name).unwrap()
    }

    fn refused(text: &str) -> InvalidPolicy {
        Policy::parse(text).unwrap_err()
    }

    #[test]
    fn policy_is_read_whatever_its_line_ends_and_the_keys_that_nobody_knows() {
        let text = "version: STSv1\r\nmode:testing\r\n\r\nnew_key: x\r\nmx: MX1.Example\r\nmx: *.example.net\r\nmax_age: 604800\r\n";
        let policy = Policy::parse(text).unwrap();
        assert_eq!(policy.mode, Mode::Testing);
        assert_eq!(policy.patterns, ["mx1.example", "*.example.net"]);
        assert_eq!(policy.max_age, 7 * DAY);
        assert!(!policy.is_enforced());
        assert!(Policy::parse(ENFORCED).unwrap().is_enforced());
        assert_eq!(Policy::parse("version: STSv1\nmode: none\nmax_age: 0").unwrap().mode, Mode::None);
    }

    #[test]
    fn text_that_is_no_policy_is_refused() {
        for text in ["", "mode: enforce\nversion: STSv1\n", "version: STSv2\n", "<html>"] {
            assert_eq!(refused(text), InvalidPolicy::Version, "{text}");
        }
        assert_eq!(refused("version: STSv1\nmode: Enforced\nmx: a\nmax_age: 1"), InvalidPolicy::Mode);
        assert_eq!(refused("version: STSv1\nmx: a\nmax_age: 1"), InvalidPolicy::Mode);
        for age in ["", "max_age: ", "max_age: -1", "max_age: +1", "max_age: a day"] {
            assert_eq!(
                refused(&format!("version: STSv1\nmode: enforce\nmx: a\n{age}")),
                InvalidPolicy::MaxAge,
                "{age}"
            );
        }
        assert_eq!(refused("version: STSv1\nmode: enforce\nmx:\nmax_age: 1"), InvalidPolicy::NoServer);
    }

    #[test]
    fn policy_holds_for_a_year_at_the_most_and_for_minutes_at_the_least() {
        for (age, expected) in [
            ("0", LEAST_AGE),
            ("299", LEAST_AGE),
            ("301", 301),
            ("31557601", MAX_AGE),
            ("99999999999999999999999999", MAX_AGE),
        ] {
            let policy = Policy::parse(&format!("version: STSv1\nmode: none\nmax_age: {age}")).unwrap();
            assert_eq!(policy.max_age, Duration::from_secs(expected), "{age}");
        }
    }

    #[test]
    fn names_that_nobody_has_and_more_than_anybody_needs_take_no_room() {
        let long = format!("mx: {}\n", "x".repeat(60_000));
        let many: String = (0..1000).map(|number| format!("mx: {number}.example\n")).collect();
        let text = |servers: &str| format!("version: STSv1\nmode: enforce\nmax_age: 86400\n{servers}");
        assert_eq!(refused(&text(&long)), InvalidPolicy::NoServer);
        assert_eq!(Policy::parse(&text(&many)).unwrap().patterns.len(), MAX_PATTERNS);
    }

    #[test]
    fn policy_is_read_as_it_is_written() {
        for mode in ["enforce", "testing", "none"] {
            let text = format!("version: STSv1\nmode: {mode}\nmx: a.example\nmx: *.b.example\nmax_age: 86400\n");
            let policy = Policy::parse(&text).unwrap();
            assert_eq!(Policy::parse(&policy.text(&[("mode2", "x".to_owned())])).unwrap(), policy);
        }
    }

    #[test]
    fn star_stands_for_one_label_and_no_more() {
        let policy =
            Policy::parse("version: STSv1\nmode: enforce\nmx: mail.example\nmx: *.b.example\nmax_age: 1").unwrap();
        for name in ["mail.example", "MAIL.example", "a.b.example"] {
            assert!(policy.names(&host(name)), "{name}");
        }
        for name in ["b.example", "a.a.b.example", "ab.example", "x.mail.example", "example"] {
            assert!(!policy.names(&host(name)), "{name}");
        }
    }

    #[test]
    fn record_is_one_of_its_kind_with_a_version() {
        let id = |texts: &[&str]| {
            let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
            policy_id(&texts).map(str::to_owned)
        };
        assert_eq!(id(&["v=spf1 -all", "v=STSv1; id=20260101T00;"]).as_deref(), Some("20260101T00"));
        assert_eq!(id(&["v=STSv1;id=1"]).as_deref(), Some("1"));
        for texts in [
            &[][..],
            &["v=STSv1; id=1", "v=STSv1; id=2"],
            &["v=STSv1"],
            &["v=STSv1;"],
            &["v=STSv1; id="],
            &["v=STSv1; id=a-b"],
            &["v=STSv10; id=1"],
            &["id=1; v=STSv1"],
            &["v=STSv1; id=012345678901234567890123456789012"],
        ] {
            assert_eq!(id(texts), None, "{texts:?}");
        }
    }
}
