//! What an operator asks of the exit queue, and the answers, as text and as JSON.

use std::fmt::Write as _;
use std::str::FromStr;

use mix::node::by_hand::{Change, Chosen, Counted, ExitQueue, Listed, Listing, State};
use mix::packet::RoutingType;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Names of exit types, as people write them.
const TYPES: [(&str, RoutingType); 3] =
    [("smtp", RoutingType::SMTP), ("mbox", RoutingType::MBOX), ("fragment", RoutingType::FRAGMENT)];

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AskQueue {
    /// What waits.
    List,
    /// How many wait.
    Counts,
    /// Not to try these.
    Hold(Which),
    /// To try them when it is their time.
    Release(Which),
    /// To give them up.
    Drop(Which),
    /// To try them now.
    Flush(Which),
}

/// Deliveries as the command line names them: `all`, an exit type, or an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Which(Chosen);

/// It names no deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected `all`, an exit type (`smtp`, `mbox`, `fragment`, or its number, as 0x0100) or an id of the list")]
pub struct InvalidWhich;

impl FromStr for Which {
    type Err = InvalidWhich;

    fn from_str(text: &str) -> Result<Self, InvalidWhich> {
        if text == "all" {
            return Ok(Self(Chosen::All));
        }
        if let Some((_, exit_type)) = TYPES.iter().find(|(name, _)| *name == text) {
            return Ok(Self(Chosen::Of(*exit_type)));
        }
        match text.strip_prefix("0x") {
            Some(number) if number.len() == 4 && number.bytes().all(|c| c.is_ascii_hexdigit()) => {
                let number = u16::from_str_radix(number, 16).map_err(|_| InvalidWhich)?;
                Ok(Self(Chosen::Of(RoutingType(number))))
            }
            _ => text.parse().map(|label| Self(Chosen::One(label))).map_err(|_| InvalidWhich),
        }
    }
}

impl TryFrom<String> for Which {
    type Error = InvalidWhich;

    fn try_from(text: String) -> Result<Self, InvalidWhich> {
        text.parse()
    }
}

impl From<Which> for String {
    fn from(Which(chosen): Which) -> Self {
        match chosen {
            Chosen::All => "all".to_owned(),
            Chosen::Of(exit_type) => format!("0x{:04x}", exit_type.0),
            Chosen::One(label) => label.to_string(),
        }
    }
}

/// A delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Delivery {
    /// What it is known by: drawn by chance.
    id: String,
    /// How it is delivered.
    r#type: String,
    /// KiB, rounded up to a power of two.
    size_kib: u64,
    /// How often it was tried.
    attempts: u32,
    /// `held`, `due` or `waiting`.
    state: String,
    /// Minutes until the next try, rounded up to quarters of an hour, of one that waits for it.
    next_minutes: Option<u64>,
}

/// The answer to `list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deliveries {
    deliveries: Vec<Delivery>,
    /// How many there are beside these.
    more: u64,
}

/// How many deliveries of a type are in a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Number {
    r#type: String,
    state: String,
    count: u64,
}

/// The answer to `show-counts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Numbers {
    counts: Vec<Number>,
}

impl AskQueue {
    /// Does it.
    ///
    /// # Errors
    /// Why it was not done.
    pub(crate) async fn of(self, queue: &ExitQueue) -> anyhow::Result<Value> {
        let (which, change) = match self {
            Self::List => return Ok(serde_json::to_value(Deliveries::of(&queue.list().await?))?),
            Self::Counts => return Ok(serde_json::to_value(Numbers::of(&queue.counts().await?))?),
            Self::Hold(which) => (which, Change::Hold),
            Self::Release(which) => (which, Change::Release),
            Self::Drop(which) => (which, Change::Drop),
            Self::Flush(which) => (which, Change::Flush),
        };
        Ok(queue.change(which.0, change).await?.into())
    }
}

fn type_name(exit_type: RoutingType) -> String {
    let known = TYPES.iter().find(|(_, known)| *known == exit_type);
    known.map_or_else(|| format!("0x{:04x}", exit_type.0), |(name, _)| (*name).to_owned())
}

fn state_name(state: State) -> String {
    match state {
        State::Due => "due",
        State::Waiting => "waiting",
        State::Held => "held",
    }
    .to_owned()
}

impl Deliveries {
    fn of(Listing { deliveries, more }: &Listing) -> Self {
        let delivery = |it: &Listed| Delivery {
            id: it.label.to_string(),
            r#type: type_name(it.exit_type),
            size_kib: it.size >> 10,
            attempts: it.attempts,
            state: state_name(it.state),
            next_minutes: it.wait.map(|wait| wait.as_secs() / 60),
        };
        Self { deliveries: deliveries.iter().map(delivery).collect(), more: *more }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        if self.deliveries.is_empty() {
            return "nothing waits for delivery".to_owned();
        }
        let mut text = format!("{:<16}  {:<8}  {:>9}  {:>5}  {}\n", "id", "type", "size", "tries", "next try");
        for Delivery { id, r#type, size_kib, attempts, state, next_minutes } in &self.deliveries {
            let next = next_minutes.map_or_else(|| state.clone(), within);
            // Writing into a text does not fail.
            let _ = writeln!(text, "{id:<16}  {type:<8}  {:>9}  {attempts:>5}  {next}", format!("{size_kib} KiB"));
        }
        if self.more > 0 {
            let _ = writeln!(text, "and {} more", self.more);
        }
        text
    }
}

fn within(minutes: u64) -> String {
    match (minutes / 60, minutes % 60) {
        (0, minutes) => format!("within {minutes} min"),
        (hours, 0) => format!("within {hours} h"),
        (hours, minutes) => format!("within {hours} h {minutes} min"),
    }
}

impl Numbers {
    fn of(counts: &[Counted]) -> Self {
        let number =
            |it: &Counted| Number { r#type: type_name(it.exit_type), state: state_name(it.state), count: it.count };
        Self { counts: counts.iter().map(number).collect() }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        if self.counts.is_empty() {
            return "nothing waits for delivery".to_owned();
        }
        let mut text = format!("{:<8}  {:<7}  {:>9}\n", "type", "state", "count");
        for Number { r#type, state, count } in &self.counts {
            // Writing into a text does not fail.
            let _ = writeln!(text, "{type:<8}  {state:<7}  {count:>9}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_are_named_by_all_a_type_or_an_id_and_by_nothing_else() {
        for (text, back) in [
            ("all", "all"),
            ("smtp", "0x0100"),
            ("mbox", "0x0101"),
            ("fragment", "0x0103"),
            ("0x01fE", "0x01fe"),
            ("0123456789abcdef", "0123456789abcdef"),
        ] {
            let which: Which = text.parse().unwrap();
            assert_eq!(String::from(which), back);
            assert_eq!(back.parse(), Ok(which));
        }
        for wrong in ["", "All", "drop", "0x100", "0x01000", "0x+100", "0123456789abcde", "bob@example.org"] {
            assert_eq!(wrong.parse::<Which>(), Err(InvalidWhich), "{wrong}");
        }
    }

    #[test]
    fn requests_are_short_lines_of_json() {
        let which: Which = "0123456789abcdef".parse().unwrap();
        let json = serde_json::to_string(&AskQueue::Hold(which)).unwrap();
        assert_eq!(json, r#"{"hold":"0123456789abcdef"}"#);
        assert_eq!(serde_json::from_str::<AskQueue>(&json).unwrap(), AskQueue::Hold(which));
        assert_eq!(serde_json::from_str::<AskQueue>(r#""list""#).unwrap(), AskQueue::List);
        assert!(serde_json::from_str::<AskQueue>(r#"{"hold":"everything"}"#).is_err());
    }

    #[test]
    fn waits_are_said_in_hours_and_minutes() {
        assert_eq!([15, 60, 435].map(within), ["within 15 min", "within 1 h", "within 7 h 15 min"]);
    }
}
