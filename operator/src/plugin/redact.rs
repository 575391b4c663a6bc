//! Takes what looks like a credential out of what is given away.

use serde_json::Value;

/// What stands in its place.
pub(crate) const HIDDEN: &str = "<redacted>";

/// Parts of names behind which a credential may stand.
const WORDS: [&str; 14] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "apikey",
    "api-key",
    "api_key",
    "access-key",
    "access_key",
    "private",
    "authorization",
    "sasl.jaas",
];

/// Whether a value of this name may be a credential.
fn is_sensitive(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    WORDS.iter().any(|word| name.contains(word))
}

/// Keys whose values only name something: a Secret, a mount, a certificate's file.
const NAMING: [&str; 12] = [
    "secretRefs",
    "secretName",
    "secretKeyRef",
    "secretRef",
    "imagePullSecrets",
    "secrets",
    "secret",
    "automountServiceAccountToken",
    "serviceAccountToken",
    "token",
    "privileged",
    "allowPrivilegeEscalation",
];

/// Every object that is given away: no values of variables and keys that look like credentials, nor what only the API server cares for.
pub(crate) fn object(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("managedFields");
            if let Some(annotations) = map.get_mut("annotations").and_then(Value::as_object_mut) {
                // A second copy of the object, as text.
                annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
            }
            let named = map.get("name").and_then(Value::as_str).is_some_and(is_sensitive);
            for (key, inner) in map.iter_mut() {
                match inner {
                    // env: {name: DB_PASSWORD, value: …}
                    Value::String(text) if key == "value" && named => HIDDEN.clone_into(text),
                    Value::String(text) if is_sensitive(key) && !NAMING.contains(&key.as_str()) => HIDDEN.clone_into(text),
                    Value::String(text) => *text = self::text(text),
                    other => object(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(object),
        Value::String(text) => *text = self::text(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A text, line by line: `password = '…'`, `token: …`, `https://user:pass@host`, `Bearer …`. `SECRET 'name'` stays: it is a name.
pub(crate) fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        out.push_str(&assignments(&addresses(line)));
    }
    out
}

/// `scheme://user:password@host` without the password.
fn addresses(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "/'\"`,;)".contains(c)).unwrap_or(after.len());
        let authority = &after[..end];
        match authority.rsplit_once('@') {
            Some((user, host)) => {
                let name = user.split(':').next().unwrap_or_default();
                out.push_str(&if user.contains(':') { format!("{name}:{HIDDEN}@{host}") } else { authority.to_owned() });
            }
            None => out.push_str(authority),
        }
        rest = &after[end..];
    }
    out.push_str(rest);
    out
}

/// What stands behind `name =` or `name:` of a sensitive name, up to the end of the text in quotes, or of the word.
fn assignments(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let mut out = String::new();
    let mut from = 0;
    while let Some((at, word)) =
        WORDS.iter().chain(&["bearer"]).filter_map(|word| Some((lower[from..].find(word)? + from, *word))).min()
    {
        // The rest of the name, its closing quote, and what assigns.
        let name_end = at
            + word.len()
            + line[at + word.len()..]
                .find(|c: char| !(c.is_alphanumeric() || "._-".contains(c)))
                .unwrap_or(line.len() - at - word.len());
        let mut value = name_end;
        let mut assigned = word == "bearer";
        for (offset, character) in line[name_end..].char_indices() {
            match character {
                '\'' | '"' | '\\' | '`' if !assigned => {}
                ' ' | '\t' => {}
                '=' | ':' => assigned = true,
                _ => {
                    value = name_end + offset;
                    break;
                }
            }
            value = name_end + offset + character.len_utf8();
        }
        let rest = &line[value..];
        if !assigned || rest.trim().is_empty() || lower[value..].starts_with("secret '") || rest.starts_with(HIDDEN) {
            out.push_str(&line[from..name_end]);
            from = name_end;
            continue;
        }
        let length = match rest.chars().next() {
            Some(quote @ ('\'' | '"' | '`')) => rest[1..].find(quote).map_or(rest.trim_end().len(), |end| end + 2),
            Some('\\') => rest[2..].find("\\\"").map_or(rest.trim_end().len(), |end| end + 4),
            _ => rest.find(|c: char| c.is_whitespace() || ",;)}".contains(c)).unwrap_or(rest.len()),
        };
        out.push_str(&line[from..value]);
        out.push_str(HIDDEN);
        from = value + length;
    }
    out.push_str(&line[from..]);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_looks_like_a_credential_is_taken_out_and_names_stay() {
        for (given, wanted) in [
            ("  password = 'hunter2', topic = 'a'", "  password = <redacted>, topic = 'a'"),
            ("'properties.sasl.jaas.config' = 'x y z'", "'properties.sasl.jaas.config' = <redacted>"),
            ("password = SECRET 'kafka_pw', n = 1", "password = SECRET 'kafka_pw', n = 1"),
            ("s3.access-key: AKIA7, region: x", "s3.access-key: <redacted>, region: x"),
            ("postgres://bob:pw@host/db and https://a.b/c", "postgres://bob:<redacted>@host/db and https://a.b/c"),
            ("{\"token\":\"abc\",\"n\":1}", "{\"token\":<redacted>,\"n\":1}"),
            ("authorization: Bearer abc.def", "authorization: <redacted> abc.def"),
            ("Bearer abc.def", "Bearer <redacted>"),
            ("the password is wrong", "the password is wrong"),
            ("secretName: orders-tls", "secretName: <redacted>"),
            ("nothing\nto see", "nothing\nto see"),
        ] {
            assert_eq!(text(given), wanted, "{given}");
        }
    }

    #[test]
    fn objects_lose_values_and_keep_references() {
        let mut pod = json!({
            "metadata": {"managedFields": [1], "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "a": "b"}},
            "spec": {"containers": [{"env": [
                {"name": "DB_PASSWORD", "value": "hunter2"},
                {"name": "PLAIN", "value": "x"},
                {"name": "OTHER_TOKEN", "valueFrom": {"secretKeyRef": {"name": "n", "key": "k"}}},
            ]}], "volumes": [{"secret": {"secretName": "orders-tls"}}]},
        });
        object(&mut pod);
        assert_eq!(pod["metadata"], json!({"annotations": {"a": "b"}}));
        assert_eq!(
            pod["spec"]["containers"][0]["env"],
            json!([
                {"name": "DB_PASSWORD", "value": HIDDEN},
                {"name": "PLAIN", "value": "x"},
                {"name": "OTHER_TOKEN", "valueFrom": {"secretKeyRef": {"name": "n", "key": "k"}}},
            ])
        );
        assert_eq!(pod["spec"]["volumes"][0]["secret"]["secretName"], "orders-tls");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_no_value_in_quotes_stays(
            before in "[ -~äß\n]{0,40}", value in "[A-Z0-9]{6,12}", after in "[ -~\\\\\n]{0,40}"
        ) {
            let _any = text(&format!("{before}{after}"));
            let shown = text(&format!("password = 'X{value}'"));
            prop_assert!(!shown.contains(&value), "{shown}");
        }
    }
}
