//! Users of an exit who have no gateway there: mail of a mail client goes through the mixes to them, into a folder or to an
//! address, by a table that the operator changes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::fs;
use std::path::Path;

use mixgate_tests::letter::letter;
use mixgate_tests::mails::plain;
use mixgate_tests::program::free_ports;
use mixgate_tests::roles::{directory, directory_key, gateway, login, network, node, run};
use mixgate_tests::sink::Sink;
use mixgate_tests::{PATIENCE, until};

/// The mails in a Maildir.
fn kept(maildir: &Path) -> Vec<Vec<u8>> {
    let Ok(files) = fs::read_dir(maildir.join("new")) else { return Vec::new() };
    files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
}

#[test]
fn mail_reaches_users_of_an_exit_in_a_folder_and_at_an_address_and_nobody_who_is_not_on_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::start();
    let ports = free_ports(6);
    let [dir, smtp, pop3, mixes @ ..] = &ports[..] else { panic!("six ports") };
    let (table, maildir) = (folder.path().join("users"), folder.path().join("eve"));
    fs::write(&table, format!("eve: {}\nfrida: frida@home.example\n", maildir.display())).unwrap();
    let mut server = run(folder.path(), "directory", &directory(*dir));
    let net = network(*dir, &directory_key(&mut server));
    let relays = ["Alpha", "Beta"].map(|name| {
        let port = mixes[usize::from(name == "Beta")];
        run(folder.path(), name, &format!("{net}{}", node(name, port, None)))
    });
    // The exit is the gateway's own node: its door knows who is on the table.
    let users = format!(
        "[node.mbox]\nenabled = true\naddress_file = \"{}\"\n[node.smtp.server]\nhost = \"{}\"\nport = {}\n\
         [node.smtp.mail]\nreturn_address = \"nobody@exit.example\"\n",
        table.display(),
        sink.address.ip(),
        sink.address.port()
    );
    let config = format!("{net}{}{users}{}", node("Gamma", mixes[2], None), gateway(*smtp, *pop3, "~2"));
    let mut door = run(folder.path(), "gateway", &config);
    door.until("the SMTP door", |_| login(*smtp));
    let send = |to: &str, subject: &str, text: &str| {
        let to = format!("{to}@gamma.mbox.alt");
        login(*smtp).unwrap().mail("<me@example.net>", &[&to], &plain(&to, subject, text)).code
    };
    // Too long for one packet, however it is compressed.
    let long: String = (0..20_000u32).map(|number| format!("{:08x}\n", number.wrapping_mul(2_654_435_761))).collect();
    until("a mail that is taken", PATIENCE, || (send("eve", "to eve", &long) == 250).then_some(()));
    assert_eq!(send("frida", "to frida", "Words for frida.\n"), 250);
    assert_eq!(send("nobody", "to nobody", "Words for nobody.\n"), 550);
    until("mail for both", PATIENCE, || (kept(&maildir).len() == 1 && sink.mails().len() == 1).then_some(()));
    let (eve, frida) = (letter(&kept(&maildir)[0]), letter(&sink.mails()[0]));
    assert_eq!((eve.subject.as_str(), frida.subject.as_str()), ("to eve", "to frida"));
    // Below what users of an exit are told of it.
    assert!(eve.body().contains(&long), "{} octets came", eve.body().len());
    assert!(frida.body().contains("Words for frida.\n"), "{}", frida.body());
    let text = String::from_utf8(sink.mails()[0].clone()).unwrap();
    assert!(text.contains("To: frida@home.example\r\n"), "{text}");

    fs::write(&table, "frida: frida@other.example\n").unwrap();
    door.signal("HUP");
    until("the other table", PATIENCE, || (send("eve", "again", "More.\n") == 550).then_some(()));
    assert_eq!(send("frida", "again", "More.\n"), 250);
    until("mail at the other address", PATIENCE, || (sink.mails().len() == 2).then_some(()));
    assert!(String::from_utf8(sink.mails()[1].clone()).unwrap().contains("To: frida@other.example\r\n"));
    for mut program in relays.into_iter().chain([door, server]) {
        program.stop();
        program.logged_nothing_that_links();
        program.said_nothing_of(&["eve@", "to eve", "frida", "Words"]);
    }
}
