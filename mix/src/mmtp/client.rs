//! The side that sends packets (minion-spec 4).
//!
//! Answers are matched to packets in order: the only way to tell them apart, since an answer names no packet but by
//! its digest.

use std::collections::VecDeque;

use super::frame::{self, ANSWER_LEN, Answer, Command, Partial, PeerMisbehaved, WINDOW};
use crate::packet::Packet;

/// What has happened, or must happen, next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Write these octets.
    Send(Vec<u8>),
    /// The version is agreed on: units may be sent.
    Agreed,
    /// The peer has taken charge of the unit of this number; the first that was sent is 0.
    Delivered(usize),
    /// The peer has not taken the unit of this number; it may later.
    Rejected(usize),
    /// Give more input.
    Receive,
}

/// How far the version exchange is.
#[derive(Default, PartialEq, Eq)]
enum Exchange {
    #[default]
    Silent,
    Offered,
    Agreed,
}

/// The two answers that one unit can have.
struct Expected {
    received: Answer,
    rejected: Answer,
}

/// One connection, seen from the side that sends packets.
#[derive(Default)]
pub struct ClientSession {
    exchange: Exchange,
    partial: Partial,
    expected: VecDeque<Expected>,
    answered: usize,
}

impl ClientSession {
    /// A session in which nothing has been said.
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes on until there is something to report; takes of `input` what it needs for that.
    ///
    /// # Errors
    /// What the peer did wrong. The session is of no use afterwards: close the connection and take units without an
    /// answer as not delivered.
    pub fn step(&mut self, input: &mut &[u8]) -> Result<Step, PeerMisbehaved> {
        match self.exchange {
            Exchange::Silent => {
                self.exchange = Exchange::Offered;
                Ok(Step::Send(frame::version_line()))
            }
            Exchange::Offered => self.step_version(input),
            Exchange::Agreed => self.step_answer(input),
        }
    }

    /// Whether the version is agreed on.
    pub fn is_agreed(&self) -> bool {
        self.exchange == Exchange::Agreed
    }

    /// Whether [`ClientSession::send`] would give a unit: the version is agreed on and the window is open.
    pub fn can_send(&self) -> bool {
        self.is_agreed() && self.expected.len() < WINDOW
    }

    /// Puts the next unit, which gets the next number, behind the octets that are to be written; false while the session
    /// can't send. For JUNK the packet is 32 KB of random octets.
    pub fn send(&mut self, command: Command, packet: &Packet, octets: &mut Vec<u8>) -> bool {
        if !self.can_send() {
            return false;
        }
        let hash = frame::hashed(packet);
        self.expected.push_back(Expected { received: command.received(&hash), rejected: frame::rejected(&hash) });
        command.put_unit(packet, &hash, octets);
        true
    }

    /// Units that have been sent and have no answer.
    pub fn unanswered(&self) -> usize {
        self.expected.len()
    }

    fn step_version(&mut self, input: &mut &[u8]) -> Result<Step, PeerMisbehaved> {
        let Some(line) = self.partial.line(input)? else { return Ok(Step::Receive) };
        match frame::check_offer(&line) {
            // A list, even with our version in it, is not a choice.
            Ok(()) if line.contains(&b',') => Err(PeerMisbehaved::VersionNotOffered),
            Ok(()) => {
                self.exchange = Exchange::Agreed;
                Ok(Step::Agreed)
            }
            Err(PeerMisbehaved::NoCommonVersion) => Err(PeerMisbehaved::VersionNotOffered),
            Err(misbehaved) => Err(misbehaved),
        }
    }

    fn step_answer(&mut self, input: &mut &[u8]) -> Result<Step, PeerMisbehaved> {
        if self.expected.is_empty() {
            return if input.is_empty() { Ok(Step::Receive) } else { Err(PeerMisbehaved::UnexpectedAnswer) };
        }
        let Some(answer) = self.partial.fill::<ANSWER_LEN>(input) else { return Ok(Step::Receive) };
        let expected = self.expected.pop_front().ok_or(PeerMisbehaved::UnexpectedAnswer)?;
        let number = self.answered;
        self.answered += 1;
        match answer {
            answer if answer == expected.received => Ok(Step::Delivered(number)),
            answer if answer == expected.rejected => Ok(Step::Rejected(number)),
            _ => Err(PeerMisbehaved::WrongAnswer),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::MAX_LINE_LEN;
    use super::super::frame::tests::{hash, packet};
    use super::super::server::{self, ServerSession};
    use super::*;

    fn offered() -> ClientSession {
        let mut session = ClientSession::new();
        assert_eq!(session.step(&mut &[][..]), Ok(Step::Send(b"MMTP 0.3\r\n".to_vec())));
        session
    }

    fn agreed() -> ClientSession {
        let mut session = offered();
        assert_eq!(session.step(&mut &b"MMTP 0.3\r\n"[..]), Ok(Step::Agreed));
        session
    }

    fn send(session: &mut ClientSession, command: Command, octet: u8) {
        assert!(session.send(command, &packet(octet), &mut Vec::new()));
    }

    #[test]
    fn nothing_is_sent_before_the_version_is_agreed_on() {
        let mut octets = b"before".to_vec();
        assert!(!ClientSession::new().send(Command::Send, &packet(1), &mut octets));
        assert!(!offered().send(Command::Send, &packet(1), &mut octets));
        assert_eq!(octets, b"before");
        assert!(agreed().send(Command::Send, &packet(1), &mut octets));
        assert_eq!(octets, [&b"before"[..], &Command::Send.unit(&packet(1))].concat());
    }

    #[test]
    fn answers_match_packets_in_order_one_octet_at_a_time() {
        let mut session = agreed();
        send(&mut session, Command::Send, 1);
        send(&mut session, Command::Junk, 2);
        send(&mut session, Command::Send, 3);
        let answers =
            [Command::Send.received(&hash(1)), Command::Junk.received(&hash(2)), frame::rejected(&hash(3))].concat();
        let steps: Vec<Step> = answers
            .chunks(1)
            .map(|octet| session.step(&mut &octet[..]).unwrap())
            .filter(|step| *step != Step::Receive)
            .collect();
        assert_eq!(steps, [Step::Delivered(0), Step::Delivered(1), Step::Rejected(2)]);
        assert_eq!(session.unanswered(), 0);
    }

    #[test]
    fn answers_in_another_order_are_wrong() {
        let mut session = agreed();
        send(&mut session, Command::Send, 1);
        send(&mut session, Command::Send, 2);
        let answer = Command::Send.received(&hash(2));
        assert_eq!(session.step(&mut &answer[..]), Err(PeerMisbehaved::WrongAnswer));
    }

    #[test]
    fn answer_to_junk_is_not_an_answer_to_a_packet() {
        let mut session = agreed();
        send(&mut session, Command::Send, 1);
        let answer = Command::Junk.received(&hash(1));
        assert_eq!(session.step(&mut &answer[..]), Err(PeerMisbehaved::WrongAnswer));
    }

    #[test]
    fn answer_to_nothing_ends_the_session() {
        let answer = Command::Send.received(&hash(1));
        assert_eq!(agreed().step(&mut &answer[..]), Err(PeerMisbehaved::UnexpectedAnswer));
    }

    #[test]
    fn choices_that_were_not_offered_are_refused() {
        assert_eq!(offered().step(&mut &b"MMTP 0.2\r\n"[..]), Err(PeerMisbehaved::VersionNotOffered));
        assert_eq!(offered().step(&mut &b"MMTP 0.2,0.3\r\n"[..]), Err(PeerMisbehaved::VersionNotOffered));
        assert_eq!(offered().step(&mut &b"220 mail ready\r\n"[..]), Err(PeerMisbehaved::VersionLine));
        assert_eq!(offered().step(&mut &[b'M'; MAX_LINE_LEN][..]), Err(PeerMisbehaved::EndlessLine));
    }

    #[test]
    fn the_window_closes_and_opens_again() {
        let mut session = agreed();
        for _ in 0..WINDOW {
            send(&mut session, Command::Send, 1);
        }
        assert!(!session.send(Command::Send, &packet(1), &mut Vec::new()));
        assert_eq!(session.step(&mut &Command::Send.received(&hash(1))[..]), Ok(Step::Delivered(0)));
        assert!(session.can_send());
    }

    #[test]
    fn client_and_server_understand_each_other() {
        let mut server = ServerSession::new();
        let mut client = ClientSession::new();
        let mut to_server = Vec::new();
        let mut to_client = Vec::new();
        let mut next = 0u8;
        let mut delivered = Vec::new();
        while delivered.len() < 40 {
            while next < 40 && client.can_send() {
                assert!(client.send(Command::Send, &packet(next), &mut to_server));
                next += 1;
            }
            let octets = std::mem::take(&mut to_client);
            let mut input = &octets[..];
            loop {
                match client.step(&mut input).unwrap() {
                    Step::Send(octets) => to_server.extend(octets),
                    Step::Delivered(number) => delivered.push(number),
                    Step::Receive => break,
                    Step::Agreed => {}
                    Step::Rejected(number) => panic!("{number} was rejected"),
                }
            }
            let octets = std::mem::take(&mut to_server);
            let mut input = &octets[..];
            loop {
                match server.step(&mut input).unwrap() {
                    server::Step::Send(octets) => to_client.extend(octets),
                    server::Step::Packet(ticket, _) => server.received(ticket),
                    server::Step::Receive => break,
                    other => panic!("unexpected {other:?}"),
                }
            }
        }
        assert_eq!(delivered, (0..40).collect::<Vec<_>>());
    }

    proptest! {
        /// Whatever comes, the machine neither panics nor keeps more than one line or answer.
        #[test]
        fn random_octets_never_panic_and_never_pile_up(
            hello in any::<bool>(),
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..8),
        ) {
            let mut session = if hello { agreed() } else { offered() };
            session.send(Command::Send, &packet(1), &mut Vec::new());
            'connection: for chunk in &chunks {
                let mut input = &chunk[..];
                loop {
                    match session.step(&mut input) {
                        Ok(Step::Receive) => break,
                        Ok(_) => {}
                        Err(_) => break 'connection,
                    }
                }
                prop_assert!(input.is_empty());
                prop_assert!(session.partial.len() < MAX_LINE_LEN);
            }
        }
    }
}
