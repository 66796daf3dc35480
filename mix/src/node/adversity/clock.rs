//! Stories of a clock that jumps two days either way, and is set right.

use super::*;

/// What a node with a clock that is wrong by two days does with what it has, and with what comes.
async fn clock_that_jumps(by: i64) {
    let home = tempfile::tempdir().unwrap();
    let mut world = World::new(day(3) + 23 * HOUR);
    let first = Mix::start(&world, &config(&home.path().join("first"))).await;
    let last = Mix::start(&world, &config(&home.path().join("last"))).await;
    let (own, next) = ([first.hop()], [last.hop()]);
    let key = Digest(own[0].packet_key.key_id().0);
    // In each queue there is something: for a user whose mailbox is away, for a mix whose door is shut, in the pool.
    let shut = Door::to(last.node.address.port(), &[Break::AtOnce; 100], &world).await;
    let behind = [last.hop_at("127.0.0.1", shut.port)];
    first.users.away.store(true, Ordering::Relaxed);
    let mut packets = world.packets(3, &own, &own);
    packets.extend(world.packets(3, &own, &behind));
    first.take(&packets).await;
    world.batches_until("what waits", &[&first], || first.queues() == [0, 0, 3, 3]).await;
    // It fails once, or it would not have to wait.
    advance(MINUTE).await;
    rests_or(&[&first], &|| false).await;
    let in_pool = [world.packets(2, &own, &own), world.packets(2, &own, &next)].concat();
    first.take(&in_pool).await;
    rests_or(&[&first], &|| false).await;
    packets.extend(in_pool);

    first.jump(by);
    // Hours by a clock that is wrong.
    for _ in 0..8 {
        advance(INTERVAL).await;
        rests_or(&[&first, &last], &|| false).await;
    }
    let Counts { expired, undeliverable, invalid, .. } = first.counts();
    assert_eq!((expired, undeliverable, invalid), (0, 0, 0), "nothing is given up");
    // A peer with the right time has certificates of another day: the packet for it waits. All else goes its way.
    first.users.away.store(false, Ordering::Relaxed);
    world.batches_until("what needs no other mix", &[&first], || first.users.got().0 == 5).await;
    let meanwhile = world.packets(2, &own, &own);
    first.take(&meanwhile).await;
    packets.extend(meanwhile);
    world.batches_until("what came meanwhile", &[&first], || first.users.got().0 == 7).await;
    first.knows_all(&packets).await;

    // The clock is set right, the mix is there again.
    first.jump(-by);
    shut.breaks.lock().unwrap().clear();
    let late = world.packets(2, &own, &next);
    first.take(&late).await;
    packets.extend(late);
    world.batches_until("all have arrived", &[&first, &last], || last.users.got().0 == 7).await;
    world.batches_until("nothing waits", &[&first, &last], || first.waiting() + last.waiting() == 0).await;
    assert_eq!((first.users.got(), last.users.got()), ((7, 7), (7, 7)), "each once");
    assert_eq!((first.counts().expired, first.counts().undeliverable), (0, 0));
    // The key that it had opens packets still, and knows those that it has opened.
    assert_eq!(first.node.replay.count(&key).unwrap() as usize, packets.len() + 7);
    first.knows_all(&packets).await;
    first.end().await;
    last.end().await;
}

#[tokio::test(start_paused = true)]
async fn clock_that_jumps_two_days_ahead_and_is_set_right_loses_nothing() {
    clock_that_jumps(TWO_DAYS).await;
}

#[tokio::test(start_paused = true)]
async fn clock_that_jumps_two_days_back_and_is_set_right_loses_nothing() {
    clock_that_jumps(-TWO_DAYS).await;
}

/// A message in many fragments, each a packet, and the message.
fn fragments(world: &mut World, to: &[Hop]) -> (Vec<Packet>, Vec<u8>) {
    let noise = [(); 3].map(|()| Payload::random(&mut world.dice));
    let noise: Vec<u8> = noise.iter().flat_map(|piece| piece.as_bytes().to_vec()).collect();
    let message = [b"\n", &noise[..]].concat();
    let frida = Exit { exit_type: RoutingType::MBOX, address: b"frida".to_vec() };
    let pieces = encode::encode(&message, Capacity::Plain, Some(&frida), &mut world.dice).unwrap();
    let exit = Exit { exit_type: RoutingType::FRAGMENT, address: Vec::new() };
    let packet = |piece: encode::EncodedPayload| {
        build::forward(&piece.into_payload().unwrap(), &exit, to, to, &mut world.dice).unwrap()
    };
    (pieces.into_iter().map(packet).collect(), message)
}

/// Half of a message is here when the clock jumps.
async fn half_a_message_and_a_jump(by: i64) {
    let home = tempfile::tempdir().unwrap();
    // An hour before midnight: what came on this day is soon of the day before.
    let mut world = World::new(day(3) + 23 * HOUR);
    let mix = Mix::start(&world, &config(&home.path().join("node"))).await;
    let hop = [mix.hop()];
    let (packets, message) = fragments(&mut world, &hop);
    let (half, rest) = packets.split_at(2);
    mix.take(half).await;
    world.batches_until("half is here", &[&mix], || mix.waiting() == 0 && mix.counts().received == 2).await;
    mix.jump(by);
    for _ in 0..6 {
        advance(HOUR).await;
        rests_or(&[&mix], &|| false).await;
    }
    assert_eq!(mix.counts().undeliverable, 0, "given up");
    mix.jump(-by);
    mix.take(rest).await;
    world.batches_until("the message", &[&mix], || mix.users.got().1 == 1).await;
    assert!(mix.users.got.lock().unwrap().contains_key(&message));
    mix.end().await;
}

#[tokio::test(start_paused = true)]
async fn incomplete_message_outlives_a_clock_that_jumps_two_days_ahead() {
    half_a_message_and_a_jump(TWO_DAYS).await;
}

#[tokio::test(start_paused = true)]
async fn incomplete_message_outlives_a_clock_that_jumps_two_days_back() {
    half_a_message_and_a_jump(-TWO_DAYS).await;
}

#[tokio::test(start_paused = true)]
async fn incomplete_message_is_given_up_in_its_time_by_a_clock_that_goes_evenly() {
    let home = tempfile::tempdir().unwrap();
    let mut world = World::new(day(3) + 23 * HOUR);
    let mix = Mix::start(&world, &config(&home.path().join("node"))).await;
    let hop = [mix.hop()];
    let (packets, _) = fragments(&mut world, &hop);
    mix.take(&packets[..2]).await;
    world.batches_until("half is here", &[&mix], || mix.waiting() == 0 && mix.counts().received == 2).await;
    // Two days from the end of the day on which it came.
    while world.now() + 2 * HOUR < day(6) {
        advance(HOUR).await;
        rests_or(&[&mix], &|| false).await;
    }
    assert_eq!(mix.counts().undeliverable, 0);
    for _ in 0..4 {
        advance(HOUR).await;
        rests_or(&[&mix], &|| false).await;
    }
    assert_eq!(mix.counts().undeliverable, 1);
    mix.end().await;
}
