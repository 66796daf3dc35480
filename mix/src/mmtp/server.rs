//! The side that takes packets (minion-spec 4).
//!
//! The machine never says RECEIVED on its own: each packet comes out with a [`Ticket`], and the answer is given when
//! the ticket is handed back. Answers go out in the order of the packets, whatever the order of the tickets.

use std::collections::VecDeque;

use super::frame::{self, Answer, Command, Partial, PartialUnit, PeerMisbehaved, WINDOW};
use crate::packet::Packet;

/// What the one who drives the session must do next.
#[derive(Debug)]
pub enum Step {
    /// Write these octets.
    Send(Vec<u8>),
    /// Store this packet, then hand the ticket back.
    Packet(Ticket, Packet),
    /// Forget this padding, in the time that it takes to store a packet, then hand the ticket back: an answer that comes
    /// sooner would tell it from a packet.
    Junk(Ticket, Packet),
    /// Give more input.
    Receive,
    /// Hand a ticket back first: [`WINDOW`] units wait for their answer.
    Wait,
}

/// The claim of one unit to an answer. Not to be copied, so that none is answered twice.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// An answer in its place among the others.
enum Slot {
    Open { received: Answer, rejected: Answer },
    Ready(Answer),
}

/// One connection, seen from the side that takes packets.
#[derive(Default)]
pub struct ServerSession {
    agreed: bool,
    line: Partial,
    unit: PartialUnit,
    slots: VecDeque<Slot>,
    /// Number of the ticket that the first slot belongs to.
    first: u64,
}

impl ServerSession {
    /// A session in which nothing has been said.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the version is agreed on.
    pub fn is_agreed(&self) -> bool {
        self.agreed
    }

    /// Goes on until there is something to do; takes of `input` what it needs for that.
    ///
    /// # Errors
    /// What the peer did wrong. The session is of no use afterwards: close the connection.
    pub fn step(&mut self, input: &mut &[u8]) -> Result<Step, PeerMisbehaved> {
        if let Some(answers) = self.take_answers() {
            return Ok(Step::Send(answers));
        }
        if !self.agreed {
            return self.step_version(input);
        }
        if self.slots.len() >= WINDOW {
            return Ok(Step::Wait);
        }
        match self.unit.fill(input)? {
            None => Ok(Step::Receive),
            Some((command, packet, hash)) => {
                let ticket = Ticket(self.first + self.slots.len() as u64);
                self.slots
                    .push_back(Slot::Open { received: command.received(&hash), rejected: frame::rejected(&hash) });
                Ok(match command {
                    Command::Send => Step::Packet(ticket, packet),
                    Command::Junk => Step::Junk(ticket, packet),
                })
            }
        }
    }

    /// The packet of this ticket is on disk, or its padding forgotten: it will be answered RECEIVED.
    pub fn received(&mut self, ticket: Ticket) {
        self.settle(ticket, |received, _| received);
    }

    /// The packet of this ticket was not taken: it will be answered REJECTED, and the peer will try again later.
    pub fn rejected(&mut self, ticket: Ticket) {
        self.settle(ticket, |_, rejected| rejected);
    }

    /// Whether every packet has its answer, and every answer was given out.
    pub fn is_settled(&self) -> bool {
        self.slots.is_empty()
    }

    /// The peer says nothing more.
    ///
    /// # Errors
    /// [`PeerMisbehaved::Truncated`] when it was in the middle of a line or unit.
    pub fn end(&self) -> Result<(), PeerMisbehaved> {
        if self.line.is_empty() && self.unit.is_empty() { Ok(()) } else { Err(PeerMisbehaved::Truncated) }
    }

    fn step_version(&mut self, input: &mut &[u8]) -> Result<Step, PeerMisbehaved> {
        let Some(line) = self.line.line(input)? else { return Ok(Step::Receive) };
        frame::check_offer(&line)?;
        self.agreed = true;
        Ok(Step::Send(frame::version_line()))
    }

    fn settle(&mut self, ticket: Ticket, choose: impl FnOnce(Answer, Answer) -> Answer) {
        let place = ticket.0.checked_sub(self.first).and_then(|place| usize::try_from(place).ok());
        // A ticket of another session may find no slot, or one that is settled: it changes nothing.
        if let Some(slot) = place.and_then(|place| self.slots.get_mut(place))
            && let Slot::Open { received, rejected } = *slot
        {
            *slot = Slot::Ready(choose(received, rejected));
        }
    }

    /// The answers before the first packet that still waits.
    fn take_answers(&mut self) -> Option<Vec<u8>> {
        let mut answers = Vec::new();
        while let Some(Slot::Ready(answer)) = self.slots.front() {
            answers.extend_from_slice(answer);
            self.slots.pop_front();
            self.first += 1;
        }
        (!answers.is_empty()).then_some(answers)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::tests::{hash, packet};
    use super::super::frame::{CONTROL_LEN, MAX_LINE_LEN, UNIT_LEN};
    use super::*;

    /// A session that has agreed on the version.
    fn agreed() -> ServerSession {
        let mut session = ServerSession::new();
        let mut hello = &b"MMTP 0.3\r\n"[..];
        assert!(matches!(session.step(&mut hello), Ok(Step::Send(line)) if line == b"MMTP 0.3\r\n"));
        session
    }

    fn units(octets: impl IntoIterator<Item = u8>) -> Vec<u8> {
        octets.into_iter().flat_map(|octet| Command::Send.unit(&packet(octet))).collect()
    }

    fn expect_packet(session: &mut ServerSession, input: &mut &[u8], octet: u8) -> Ticket {
        match session.step(input) {
            Ok(Step::Packet(ticket, found)) => {
                assert!(found == packet(octet));
                ticket
            }
            other => panic!("expected packet {octet}, found {other:?}"),
        }
    }

    /// Feeds all of `input` and returns how it ended.
    fn misbehaviour(session: &mut ServerSession, mut input: &[u8]) -> PeerMisbehaved {
        loop {
            match session.step(&mut input) {
                Ok(Step::Receive) => panic!("all was accepted"),
                Ok(_) => {}
                Err(misbehaved) => return misbehaved,
            }
        }
    }

    #[test]
    fn nothing_is_answered_before_the_packet_is_stored() {
        let mut session = agreed();
        let unit = units([1]);
        let mut input = &unit[..];
        let ticket = expect_packet(&mut session, &mut input, 1);
        assert!(matches!(session.step(&mut input), Ok(Step::Receive)));
        assert!(!session.is_settled());
        session.received(ticket);
        let expected = Command::Send.received(&hash(1));
        assert!(matches!(session.step(&mut input), Ok(Step::Send(answer)) if answer == expected));
        assert!(session.is_settled());
    }

    #[test]
    fn answers_keep_the_order_of_packets_whatever_the_order_of_tickets() {
        let mut session = agreed();
        let all = units([1, 2, 3]);
        let mut input = &all[..];
        let first = expect_packet(&mut session, &mut input, 1);
        let second = expect_packet(&mut session, &mut input, 2);
        let third = expect_packet(&mut session, &mut input, 3);
        session.received(third);
        session.rejected(second);
        assert!(matches!(session.step(&mut input), Ok(Step::Receive)));
        session.received(first);
        let expected =
            [Command::Send.received(&hash(1)), frame::rejected(&hash(2)), Command::Send.received(&hash(3))].concat();
        assert!(matches!(session.step(&mut input), Ok(Step::Send(answers)) if answers == expected));
    }

    #[test]
    fn junk_is_answered_when_it_is_forgotten_and_not_before_an_earlier_packet() {
        let mut session = agreed();
        let all = [units([1]), Command::Junk.unit(&packet(2))].concat();
        let mut input = &all[..];
        let ticket = expect_packet(&mut session, &mut input, 1);
        let Ok(Step::Junk(junk, octets)) = session.step(&mut input) else { panic!("junk") };
        assert!(octets == packet(2));
        assert!(matches!(session.step(&mut input), Ok(Step::Receive)));
        session.received(junk);
        assert!(matches!(session.step(&mut input), Ok(Step::Receive)));
        session.received(ticket);
        let expected = [Command::Send.received(&hash(1)), Command::Junk.received(&hash(2))].concat();
        assert!(matches!(session.step(&mut input), Ok(Step::Send(answers)) if answers == expected));
    }

    #[test]
    fn no_more_than_the_window_is_taken_without_answers() {
        let mut session = agreed();
        let all = units(0..=WINDOW as u8);
        let mut input = &all[..];
        let mut tickets: VecDeque<Ticket> =
            (0..WINDOW as u8).map(|octet| expect_packet(&mut session, &mut input, octet)).collect();
        assert!(matches!(session.step(&mut input), Ok(Step::Wait)));
        assert_eq!(input.len(), UNIT_LEN, "the next unit is left where it is");
        session.received(tickets.pop_front().unwrap());
        assert!(matches!(session.step(&mut input), Ok(Step::Send(_))));
        expect_packet(&mut session, &mut input, WINDOW as u8);
    }

    #[test]
    fn one_octet_at_a_time_makes_no_difference() {
        let mut session = ServerSession::new();
        let all = [b"MMTP 0.2,0.3\r\n".to_vec(), units([1]), Command::Junk.unit(&packet(2)), units([3])].concat();
        let mut sent = Vec::new();
        let mut taken = Vec::new();
        for octet in all.chunks(1) {
            let mut input = octet;
            loop {
                match session.step(&mut input).unwrap() {
                    Step::Send(octets) => sent.extend(octets),
                    Step::Packet(ticket, packet) => {
                        taken.push(packet);
                        session.received(ticket);
                    }
                    Step::Junk(ticket, _) => session.received(ticket),
                    Step::Receive => break,
                    Step::Wait => panic!("every ticket was handed back"),
                }
            }
            assert!(input.is_empty());
        }
        assert!(taken == [packet(1), packet(3)]);
        let expected = [
            b"MMTP 0.3\r\n".to_vec(),
            Command::Send.received(&hash(1)).to_vec(),
            Command::Junk.received(&hash(2)).to_vec(),
            Command::Send.received(&hash(3)).to_vec(),
        ]
        .concat();
        assert_eq!(sent, expected);
        assert_eq!(session.end(), Ok(()));
    }

    #[test]
    fn wrong_digest_ends_the_session() {
        let mut unit = units([1]);
        unit[UNIT_LEN - 1] ^= 1;
        assert_eq!(misbehaviour(&mut agreed(), &unit), PeerMisbehaved::WrongDigest);
    }

    #[test]
    fn junk_digest_under_send_is_wrong() {
        let mut unit = Command::Junk.unit(&packet(1));
        unit[..CONTROL_LEN].copy_from_slice(b"SEND\r\n");
        assert_eq!(misbehaviour(&mut agreed(), &unit), PeerMisbehaved::WrongDigest);
    }

    #[test]
    fn unknown_command_ends_the_session_before_its_packet_came() {
        assert_eq!(misbehaviour(&mut agreed(), b"QUIT\r\n"), PeerMisbehaved::UnknownCommand);
        assert_eq!(misbehaviour(&mut agreed(), b"SEND\n\n"), PeerMisbehaved::UnknownCommand);
    }

    #[test]
    fn endless_first_line_ends_the_session() {
        let line = [b'M'; MAX_LINE_LEN];
        assert_eq!(misbehaviour(&mut ServerSession::new(), &line), PeerMisbehaved::EndlessLine);
    }

    #[test]
    fn other_protocols_and_versions_are_refused_by_name() {
        let mut session = ServerSession::new();
        assert_eq!(misbehaviour(&mut session, b"GET / HTTP/1.0\r\n"), PeerMisbehaved::VersionLine);
        let mut session = ServerSession::new();
        assert_eq!(misbehaviour(&mut session, b"MMTP 0.1,0.2\r\n"), PeerMisbehaved::NoCommonVersion);
    }

    #[test]
    fn end_within_a_unit_is_truncation() {
        let mut session = agreed();
        let unit = units([1]);
        let mut input = &unit[..UNIT_LEN - 1];
        assert!(matches!(session.step(&mut input), Ok(Step::Receive)));
        assert_eq!(session.end(), Err(PeerMisbehaved::Truncated));
    }

    #[test]
    fn foreign_ticket_changes_nothing() {
        let mut session = agreed();
        session.received(Ticket(0));
        session.rejected(Ticket(u64::MAX));
        assert!(session.is_settled());
        assert!(matches!(session.step(&mut &[][..]), Ok(Step::Receive)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever comes, the machine neither panics nor keeps more than one unit.
        #[test]
        fn random_octets_never_panic_and_never_pile_up(
            hello in any::<bool>(),
            chunks in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..5000),
                    Just(b"SEND\r\n".to_vec()),
                    Just(b"JUNK\r\n".to_vec()),
                    Just(vec![b'a'; PARTIAL_UNIT]),
                    Just(Command::Send.unit(&packet(9))),
                ],
                0..12,
            ),
        ) {
            let mut session = if hello { agreed() } else { ServerSession::new() };
            'connection: for chunk in &chunks {
                let mut input = &chunk[..];
                loop {
                    match session.step(&mut input) {
                        Ok(Step::Receive) => {
                            prop_assert!(input.is_empty());
                            break;
                        }
                        Ok(Step::Wait) => prop_assert!(false, "every ticket was handed back"),
                        Ok(Step::Packet(ticket, _)) => session.rejected(ticket),
                        Ok(_) => {}
                        Err(_) => break 'connection,
                    }
                    prop_assert!(session.line.len() < MAX_LINE_LEN && session.unit.len() < UNIT_LEN);
                    prop_assert!(session.slots.len() <= WINDOW);
                }
            }
        }
    }

    const PARTIAL_UNIT: usize = 20_000;
}
