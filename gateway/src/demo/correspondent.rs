//! The correspondent of the demonstration: somebody outside who got a message with a reply block and answers through it,
//! with Type III software of their own that shares nothing with the gateway's.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use mix::directory::Directory;
use mix::net::connect::{self, ConnectConfig, Outcome, Unit};
use mix::node::{World, sender};
use mix::packet::{NextHop, Surb, build};
use mix::path::select::{PathRequest, select};
use mix::path::spec::{PathKind, PathSpec};
use mix::path::valid::{BlockLists, Mixes, Target};
use mix::payload::headers::{self, MessageHeaders};
use mix::payload::{Capacity, armor, encode};
use tokio_util::sync::CancellationToken;

/// How a reply block begins in text (minion-spec, appendix on armour).
const BEGIN_SURB: &str = "-----BEGIN TYPE III REPLY BLOCK-----";
/// How long the packets of an answer may take.
const TRANSIT: Duration = Duration::from_secs(24 * 3600);

/// The reply blocks in a mail that the outside world has got.
pub(super) fn reply_blocks(mail: &[u8]) -> anyhow::Result<Vec<Surb>> {
    let message = mail_parser::MessageParser::default().parse(mail).context("reading the delivered message")?;
    let text = message.body_text(0).context("reading the delivered message")?;
    let surbs = whole_blocks(&text);
    if surbs.is_empty() {
        bail!("the delivered message carries no reply block");
    }
    Ok(surbs)
}

/// The reply blocks in a text. What only looks like the beginning of one, as whoever wrote the text may have put there,
/// does not hide those behind it.
fn whole_blocks(text: &str) -> Vec<Surb> {
    let starts = text.match_indices(BEGIN_SURB).map(|(start, _)| start);
    let ends = starts.clone().skip(1).chain([text.len()]);
    let parts = starts.zip(ends).filter_map(|(start, end)| text.get(start..end));
    parts
        .filter_map(|part| armor::surbs_from_text(part.as_bytes()).ok())
        .flatten()
        .map(|found| found.item.surb)
        .collect()
}

/// Answers with `text` through `surbs`, one for each packet.
pub(super) async fn answer(text: &[u8], surbs: &[Surb], directory: &Directory) -> anyhow::Result<()> {
    let packets = packets(text, surbs, directory)?;
    let stop = CancellationToken::new();
    for (first, packet) in packets {
        let unit = vec![Unit::packet((), packet)];
        let delivery = connect::deliver(&first, unit, &ConnectConfig::default(), World::real().now(), &stop).await;
        if !delivery.outcomes.iter().all(|((), outcome)| *outcome == Outcome::Delivered) {
            return Err(delivery.failure.map_or_else(|| anyhow::anyhow!("refused"), anyhow::Error::from))
                .context("handing the answer to its first mix");
        }
    }
    Ok(())
}

fn packets(text: &[u8], surbs: &[Surb], directory: &Directory) -> anyhow::Result<Vec<(NextHop, mix::packet::Packet)>> {
    let world = World::real();
    let mut dice = world.dice();
    let headers = MessageHeaders { subject: Some("Re: your message".into()), ..MessageHeaders::default() };
    let message = [headers::encode(&headers)?, text.to_vec()].concat();
    let payloads = encode::encode(&message, Capacity::Plain, None, &mut dice)?;
    if payloads.len() > surbs.len() {
        bail!("the answer needs {} reply blocks, the message carried {}", payloads.len(), surbs.len());
    }
    let mixes = Mixes::of(directory, BlockLists::default());
    let spec = PathSpec::parse("~3", PathKind::Reply)?;
    let mut packets = Vec::new();
    for (payload, surb) in payloads.into_iter().zip(surbs) {
        let request = PathRequest {
            spec: &spec,
            target: Target::Surb(&surb.first_hop),
            packets: 1,
            valid_until: world.now() + TRANSIT,
            files: &BTreeMap::new(),
        };
        let path = select(&mixes, &request, world.now(), &mut dice)?.pop().context("no path")?;
        let leg = sender::hops(&path.leg1)?;
        let first = leg.first().context("no path")?.route.clone();
        let payload = payload.into_payload().context("encoding the answer")?;
        packets.push((NextHop::Host(first), build::reply(&payload, &leg, surb, &mut dice)?));
    }
    Ok(packets)
}
