//! What a stranger writes who wants one mail to be taken for two, or a line of text for a command: the corpus of SMTP
//! smuggling, for the text of a message and for each header that its sender may choose.

/// What could be taken for the end of a mail by somebody, or hide it from somebody.
pub const ENDS: [&str; 16] = [
    "\n.\n",
    "\n.\r\n",
    "\r\n.\n",
    "\r\n.\r",
    "\r.\r",
    "\r.\n",
    "\r.\r\n",
    "\n.\r",
    "\r\n.\r\n",
    "\r\r\n.\r\r\n",
    "\n\n.\n\n",
    "\r\n\0.\r\n",
    "\0\r\n.\r\n\0",
    "\r\n.\0\r\n",
    "\u{85}.\u{85}",
    "\u{2028}.\u{2028}",
];

/// What would be said to the server, were the mail to end there.
const COMMANDS: &str = "MAIL FROM:<eve@evil.example>\r\nRCPT TO:<smuggled@example.org>\r\nDATA\r\nSubject: smuggled\r\n\r\n\
                        smuggled\r\n.\r\n";

/// Texts of messages.
pub fn bodies() -> Vec<Vec<u8>> {
    let mut bodies: Vec<Vec<u8>> = Vec::new();
    let mut add = |text: &str| bodies.push(text.as_bytes().to_vec());
    for end in ENDS {
        add(&format!("before{end}{COMMANDS}"));
        add(&format!("before{end}{}", COMMANDS.replace("\r\n", "\n")));
        add(&format!("before{end}{}", COMMANDS.replace("\r\n", "\r")));
        add(&format!("{end}{COMMANDS}"));
        add(&format!("at the end{end}"));
        add(end);
    }
    // A dot at each place of a line that is broken for the transport, and where the break might put it first.
    for place in (70..=78).chain(996..=1001) {
        add(&format!("é{}.\nQUIT\n", "x".repeat(place)));
        add(&format!("{}.\nQUIT\n", "x".repeat(place)));
        add(&format!("{}\n.\n", "x".repeat(place)));
        add(&format!("{}..{}\n", "é".repeat(place / 2), ".".repeat(place)));
    }
    for lines in
        [".", "..", ".\n.\n.", ".x", "...\n..\n.", "From eve\n>From eve\nfrom", "", "\n", "\n\n.", "x\r", "=\n=2E\n"]
    {
        add(lines);
    }
    for len in [997, 998, 999, 5000, 20_000] {
        add(&"y".repeat(len));
        add(&".".repeat(len));
        add(&"ž".repeat(len));
        add(&" ".repeat(len));
    }
    bodies.push((0..=255).collect());
    bodies.push(b"\xC3\x28 latin\xE9\n.\r\nQUIT\r\n".to_vec());
    bodies.push(vec![0; 2000]);
    bodies
}

/// Values of a header.
pub fn values() -> Vec<String> {
    let mut values = Vec::new();
    for end in ENDS {
        values.push(format!("x{end}{COMMANDS}"));
        values.push(format!("{end}{COMMANDS}"));
        values.push(format!("<x@y.example>{end}"));
    }
    for text in [
        "x\r\nBcc: smuggled@example.org",
        "x\nBcc: smuggled@example.org",
        "x\rBcc: smuggled@example.org",
        "\r\n\r\nsmuggled",
        "x\r\n\tBcc: smuggled@example.org",
        "x\0y",
        "=?utf-8?Q?x=0D=0ABcc:_smuggled@example.org?=",
        "=?utf-8?B?eA0KQmNjOiBzbXVnZ2xlZEBleGFtcGxlLm9yZw==?=",
        "=?utf-8?Q?",
        "x\" <smuggled@example.org>, \"y",
        "x <smuggled@example.org>",
        "(comment) , smuggled@example.org;",
        "\\",
        "žluť\r\n.\r\n",
        "",
        " ",
        "\t\r\n",
    ] {
        values.push(text.to_owned());
    }
    values.push("x ".repeat(450));
    values.push("x".repeat(900));
    values.push("x".repeat(5000));
    values.push("ž".repeat(900));
    values.push(format!("{}.", "x ".repeat(38)));
    values
}
