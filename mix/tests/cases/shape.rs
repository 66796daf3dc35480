//! What the vector files are made of: which parts each has, and which entries. Nothing in them may go unread.

use serde_json::Value;

use crate::{Tally, is_own_folder};

/// The entries of each object, by its place. `[]` stands for any case of a list.
const SHAPES: &[(&str, &str)] = &[
    (
        "crypto.json",
        "aes_counter_prng aes_ctr hide_keys keyset lioness oaep_parameter prng rsa_oaep sha1 whiten \
         whiten_keys_hex",
    ),
    (
        "crypto.json.aes_counter_prng",
        "getInt getInt_of seed_hex then_getBytes3_hex then_shuffle_range12 then_shuffle_range30_first5",
    ),
    ("crypto.json.aes_ctr", "cases"),
    ("crypto.json.aes_ctr.cases[]", "ciphertext_hex key_hex plaintext_hex start_byte_index"),
    ("crypto.json.hide_keys", "header_prng_key_hex keys_from_header_hex keys_from_payload_hex payload_prng_key_hex"),
    ("crypto.json.keyset[]", "master_hex modes"),
    ("crypto.json.keyset[].modes[]", "key16_hex key20_hex lioness_hex mode"),
    (
        "crypto.json.lioness[]",
        "ciphertext_hex ciphertext_sha1_hex decrypt_of_plaintext_sha1_hex keys_hex length plaintext_hex \
         plaintext_is plaintext_prng_key_hex plaintext_sha1_hex",
    ),
    ("crypto.json.prng", "at_1000_len_64_hex first_256_hex key_hex sha1_of_first_100000_hex"),
    ("crypto.json.rsa_oaep[]", "bad bits e enc fingerprint modulus_hex private_der_b64 public_der_b64 sig"),
    ("crypto.json.rsa_oaep[].bad[]", "ciphertext_hex error result_hex"),
    ("crypto.json.rsa_oaep[].enc[]", "ciphertext_hex message_hex padded_hex seed_hex"),
    ("crypto.json.rsa_oaep[].sig[]", "message_hex seed_hex signature_hex"),
    ("crypto.json.sha1[]", "digest_hex input_hex"),
    ("crypto.json.whiten[]", "length prng_key_hex whitened_head32_hex whitened_sha1_hex"),
    ("exit_and_armor.json", "armor_parse delivery encode_mail_headers"),
    ("exit_and_armor.json.armor_parse[]", "error input result"),
    ("exit_and_armor.json.armor_parse[].result[]", "contents_hex tag_hex type"),
    (
        "exit_and_armor.json.delivery[]",
        "body_b64 encoded_headers_hex headers_in headers_out is_fragment parse_headers payload_b64 \
         payload_padding_prng_key_hex payload_prng_key_hex payload_sha1_hex tag_hex text_encoded \
         text_encoded_head text_encoded_sha1_hex type",
    ),
    ("exit_and_armor.json.delivery[].parse_headers", "body_hex headers input_hex"),
    ("exit_and_armor.json.encode_mail_headers[]", "args error output_hex"),
    ("packets.json", "encrypted_forward forward ipv4_forward leg_capacity negative reply servers"),
    (
        "packets.json.encrypted_forward[]",
        "e2e_encoded_payload_b64 hops inner_payload_sha1_hex message packet_b64 path1 path2 tag_hex \
         user_key_bits user_key_private_der_b64",
    ),
    (
        "packets.json.encrypted_forward[].hops[]",
        "application_key_hex exit_type next_header1_sha1_hex next_header2_sha1_hex next_host next_keyid_hex \
         next_packet_sha1_hex next_payload_sha1_hex next_port payload_sha1_hex replay_hash_hex result \
         routing_info_hex server",
    ),
    (
        "packets.json.forward[]",
        "build_error build_inputs exit_info_hex exit_type hops message packet_b64 packet_sha1_hex path1 path2 \
         payload_padding_prng_key_hex payload_sha1_hex tagged",
    ),
    (
        "packets.json.forward[].build_inputs",
        "oaep_seeds1_hex oaep_seeds2_hex padding1_b64 padding2_b64 secrets1_hex secrets2_hex tag_hex",
    ),
    (
        "packets.json.forward[].hops[]",
        "application_key_hex exit_type next_header1_sha1_hex next_header2_sha1_hex next_host next_keyid_hex \
         next_packet_sha1_hex next_payload_sha1_hex next_port payload_sha1_hex replay_hash_hex result \
         routing_info_hex server",
    ),
    ("packets.json.ipv4_forward", "hops packet_b64 path1 path2"),
    (
        "packets.json.ipv4_forward.hops[]",
        "application_key_hex exit_type next_header1_sha1_hex next_header2_sha1_hex next_ip next_keyid_hex \
         next_packet_sha1_hex next_payload_sha1_hex next_port payload_sha1_hex replay_hash_hex result \
         routing_info_hex server",
    ),
    ("packets.json.leg_capacity[]", "hostname_len last_routing_info_len max_hops_in_leg"),
    ("packets.json.negative[]", "base final_payload_decodes header1_b64 hops length server xor"),
    (
        "packets.json.negative[].hops[]",
        "application_key_hex error error_class exit_type next_header1_sha1_hex next_header2_sha1_hex \
         next_host next_ip next_keyid_hex next_packet_sha1_hex next_payload_sha1_hex next_port \
         payload_sha1_hex replay_hash_hex result routing_info_hex server",
    ),
    (
        "packets.json.reply[]",
        "build_inputs delivered_address_hex delivered_exit_type delivered_payload_b64 \
         delivered_payload_sha1_hex delivered_tag_hex hops packet_b64 packet_sha1_hex \
         payload_padding_prng_key_hex payload_sha1_hex reply_message reply_path1 surb",
    ),
    ("packets.json.reply[].build_inputs", "oaep_seeds1_hex padding1_b64 secrets1_hex"),
    (
        "packets.json.reply[].hops[]",
        "application_key_hex exit_type next_header1_sha1_hex next_header2_sha1_hex next_host next_keyid_hex \
         next_packet_sha1_hex next_payload_sha1_hex next_port payload_sha1_hex replay_hash_hex result \
         routing_info_hex server",
    ),
    (
        "packets.json.reply[].surb",
        "expires format header_padding_b64 header_secrets_path_order_hex hex_digest oaep_seeds_hex path \
         secrets_generated_hex seed_tag_hex shared_key_hex surb_ascii surb_b64 user_key_hex",
    ),
    ("packets.json.servers[]", "fwd_routing_info_hex host index keyid_hex packet_key_private_der_b64 port"),
    ("paths_addresses.json", "hostname mailbox parse_address parse_path server_side_fragment_prefix"),
    ("paths_addresses.json.hostname[]", "ok s"),
    ("paths_addresses.json.mailbox[]", "ok s"),
    ("paths_addresses.json.parse_address[]", "address error exit_info exit_type last_hop suppress_tag"),
    ("paths_addresses.json.parse_path[]", "error is_reply is_surb late_split path1 path2 spec str"),
    ("paths_addresses.json.server_side_fragment_prefix[]", "prefix_hex routing_info routing_type"),
    ("payloads.json", "compress fec fragmentation_params fragmented parse singleton uncompress zlib_bomb_limit"),
    ("payloads.json.compress", "cases"),
    ("payloads.json.compress.cases[]", "compressed_b64 input_b64 length"),
    ("payloads.json.fec", "cases"),
    ("payloads.json.fec.cases[]", "block_size blocks_hex decodable_subsets encoded_hex k n"),
    ("payloads.json.fragmentation_params[]", "capacity error k length n n_chunks overhead padding"),
    (
        "payloads.json.fragmented[]",
        "common_seed_hex compressed_plus_prefix_len compressed_plus_prefix_sha1_hex drop_sets \
         fragment_capacity fragments fragments_b64 k message_id_hex message_len message_prng_key_hex \
         message_sha1_hex n n_chunks overhead padded_len padding_is padding_len prefix_hex whitened_sha1_hex",
    ),
    ("payloads.json.fragmented[].fragments[]", "header47_hex index msg_len payload_sha1_hex"),
    ("payloads.json.parse", "base_payload_b64 cases"),
    ("payloads.json.parse.cases[]", "checksum_ok error head64_hex length parse"),
    (
        "payloads.json.singleton[]",
        "data_hash_hex message message_len message_prng_key_hex message_sha1_hex overhead \
         padding_prng_key_hex payload_b64 payload_head64_hex payload_len payload_sha1_hex size_field",
    ),
    ("payloads.json.uncompress[]", "error input_b64 max_length output_b64"),
    ("payloads.json.zlib_bomb_limit", "cases"),
    ("payloads.json.zlib_bomb_limit.cases[]", "compressed_len error limit result_len zero_bytes"),
    ("routing.json", "pack parse subheader types"),
    ("routing.json.pack[]", "format fwd_type host_in host_out ip keyid_hex kind packed_hex port swap_type"),
    ("routing.json.parse[]", "error input_hex kind ok repacked_hex"),
    (
        "routing.json.subheader[]",
        "digest_hex overflow_hex packed_hex routing_info_hex routing_type secret_hex underflow_len",
    ),
    ("text_formats.json", "descriptors directories surb_parse"),
    ("text_formats.json.descriptors", "cases keys now"),
    (
        "text_formats.json.descriptors.cases[]",
        "accepted caps digest_hex error expired_at_now expired_at_plus_60d frag_max getter_errors hostname \
         keyid_hex mbox_max nickname packet_key_sha1_hex packet_versions port published routing_info_hex \
         smtp_allow_from smtp_max supports_packet_version text valid_after valid_at_now valid_until",
    ),
    ("text_formats.json.directories", "cases fingerprints keys now"),
    (
        "text_formats.json.directories.cases[]",
        "accepted error good_signers identity_fingerprint kind n_signatures_with_good_digest recommended \
         servers status text_b64 text_encoding valid_after valid_until",
    ),
    ("text_formats.json.surb_parse[]", "error input input_b64 result"),
    ("text_formats.json.surb_parse[].result[]", "expires hex_digest routing_info_hex routing_type shared_key_hex"),
];

/// Parts of a single value that is always the same; files of others may leave them out.
const FIXED: [&str; 4] =
    ["crypto.json.oaep_parameter", "crypto.json.whiten_keys_hex", "packets.json.ipv4_forward", "routing.json.types"];

/// Objects whose entries are their content.
const OPEN: [&str; 7] = [".types", ".getter_errors", ".headers", ".headers_in", ".headers_out", ".args", ".keys"];

/// What people read; allowed everywhere.
const REMARKS: [&str; 4] = ["note", "notes", "label", "id"];

/// Fails for each part of the file `name` that is missing, empty or unknown, and for each entry that nobody reads.
pub fn check(name: &str, file: &Value, tally: &mut Tally) {
    for part in entries_of(name).unwrap_or_default() {
        let place = format!("{name}.{part}");
        match file.get(part) {
            None if FIXED.contains(&place.as_str()) && !is_own_folder() => println!("{place}: not there"),
            None => tally.fail(&place, "the part is missing"),
            Some(value) if is_empty(value) => tally.fail(&place, "the part is empty"),
            Some(_) => {}
        }
    }
    check_entries(name, file, tally);
}

fn entries_of(place: &str) -> Option<Vec<&'static str>> {
    let found = SHAPES.iter().find(|(known, _)| *known == place);
    found.map(|(_, names)| names.split_ascii_whitespace().collect())
}

fn is_empty(part: &Value) -> bool {
    match part {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(cases) => cases.is_empty(),
        Value::Object(entries) => entries.get("cases").map_or(entries.is_empty(), is_empty),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn check_entries(place: &str, value: &Value, tally: &mut Tally) {
    match value {
        Value::Array(cases) => cases.iter().for_each(|case| check_entries(&format!("{place}[]"), case, tally)),
        Value::Object(entries) if !OPEN.iter().any(|open| place.ends_with(open)) => {
            let known = entries_of(place).unwrap_or_default();
            for (name, entry) in entries {
                if known.contains(&name.as_str()) {
                    check_entries(&format!("{place}.{name}"), entry, tally);
                } else if !REMARKS.contains(&name.as_str()) {
                    tally.fail(place, &format!("nobody reads the entry {name}"));
                }
            }
        }
        _ => {}
    }
}
