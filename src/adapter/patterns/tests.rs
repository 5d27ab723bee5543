use super::*;
use expect_test::expect;
use quickcheck::{Arbitrary, Gen, quickcheck};
use regex::Regex;

/// A short text of the characters in `alphabet`.
fn text(g: &mut Gen, alphabet: &[&str]) -> String {
    let length = usize::arbitrary(g) % 7;
    (0..length).map(|_| *g.choose(alphabet).unwrap()).collect()
}

/// A key with or without operators.
#[derive(Clone, Debug)]
struct Key(String);

impl Arbitrary for Key {
    fn arbitrary(g: &mut Gen) -> Self {
        let literal = ["a", "b", "é", ".", r"\.", "."];
        let any =
            ["a", "b", ".", r"\.", "^", "$", "|", "(", ")", "*", r"\", r"\-", r"\<", "\n", "[", "]", "{1}"];
        let alphabet = if bool::arbitrary(g) { &literal[..] } else { &any[..] };
        let anchor = if bool::arbitrary(g) { "^" } else { "" };
        Self(format!("{anchor}{}", text(g, alphabet)))
    }
}

/// The name of a module.
#[derive(Clone, Debug)]
struct Name(String);

impl Arbitrary for Name {
    fn arbitrary(g: &mut Gen) -> Self {
        Self(text(g, &["a", "b", "é", ".", ".", "-", "\n"]))
    }
}

fn parse<T: for<'de> Deserialize<'de> + Copy>(text: &str) -> Result<Patterns<T>, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn object<K: AsRef<str>>(keys: impl IntoIterator<Item = K>) -> String {
    let entries = keys.into_iter().enumerate();
    let entries = entries.map(|(place, key)| format!("{}:{place}", serde_json::json!(key.as_ref())));
    format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
}

quickcheck! {
    /// The oracle compares a name with every expression, one after the other.
    fn the_first_match_is_that_of_the_expressions(keys: Vec<Key>, names: Vec<Name>) -> bool {
        let expressions: Vec<_> = keys.iter().map(|key| Regex::new(&whole(&key.0))).collect();
        let distinct: BTreeSet<&str> = keys.iter().map(|key| key.0.as_str()).collect();
        let is_sound = distinct.len() == keys.len() && expressions.iter().all(Result::is_ok);
        match parse::<usize>(&object(keys.iter().map(|key| &key.0))) {
            Err(_) => !is_sound,
            Ok(patterns) => is_sound && names.iter().all(|Name(name)| {
                let expected = expressions.iter().position(|e| e.as_ref().unwrap().is_match(name));
                patterns.first_match(name).copied() == expected
            }),
        }
    }

    /// The names of a list are those that the expression matches.
    fn listed_names_are_those_of_the_expression(listed: Vec<Name>, names: Vec<Name>) -> bool {
        let escaped: Vec<String> = listed.iter().map(|name| regex::escape(&name.0)).collect();
        let expression = format!("^(?:{})$", escaped.join("|"));
        let found = listed_names(&expression).unwrap();
        let oracle = Regex::new(&expression).unwrap();
        listed.iter().chain(&names).all(|Name(name)| found.contains(name) == oracle.is_match(name))
    }
}

#[test]
fn other_expressions_are_no_lists_of_names() {
    for expression in ["q|v", "^(?:q.|v)$", "^(?:(?:q|v))$", r"^(?:a\|", r"^(?:^a|b)$", "^(?:a|b)$|c"] {
        assert_eq!(listed_names(expression), None, "{expression}");
    }
    // A bar in a name is rare. Such an expression is compiled.
    assert_eq!(listed_names(r"^(?:a\|b)$"), None);
}

/// A comparison of each layer with each expression would take hours here.
#[test]
fn expressions_for_every_layer_are_looked_up() {
    let names: Vec<String> = (0..50_000)
        .map(|index| format!("model.layers.{}.mlp.experts.{}.up_proj", index % 100, index / 100))
        .collect();
    let escaped = |name: &String| regex::escape(name);
    let unescaped = |name: &String| name.clone();
    let anchored = |name: &String| format!("^{}", regex::escape(name));
    for key in [escaped, unescaped, anchored] {
        let patterns: Patterns<usize> = parse(&object(names.iter().map(key))).unwrap();
        assert_eq!(patterns.places, Vec::<usize>::new(), "no expression is compiled");
        for (place, name) in names.iter().enumerate() {
            assert_eq!(patterns.first_match(name), Some(&place), "{name}");
        }
    }
}

/// The first key in the file decides, whichever way it is looked up.
#[test]
fn the_order_of_the_file_decides_between_all_kinds_of_keys() {
    let keys = [r"b\.q", "b.q", ".*q", "^b.q"];
    let first = |order: &[usize], name: &str| {
        let patterns: Patterns<usize> = parse(&object(order.iter().map(|&key| keys[key]))).unwrap();
        patterns.first_match(name).map(|&place| order[place])
    };
    assert_eq!(first(&[0, 1, 2, 3], "b.q"), Some(0));
    assert_eq!(first(&[3, 2, 1, 0], "b.q"), Some(3));
    assert_eq!(first(&[3, 1, 0, 2], "a.b.q"), Some(1));
    assert_eq!(first(&[0, 1, 2, 3], "bxq"), Some(1));
    assert_eq!(first(&[0, 2, 1], "bxq"), Some(2));
}

/// Keys with dots at many different positions become expressions, and still match.
#[test]
fn keys_with_dots_at_many_positions_are_matched() {
    let keys: Vec<String> =
        (0..MOST_GROUPS + 3).map(|at| format!("{}.{}", "a".repeat(at), "b".repeat(9))).collect();
    let patterns: Patterns<usize> = parse(&object(&keys)).unwrap();
    assert_eq!(patterns.places.len(), 3);
    for (place, key) in keys.iter().enumerate().rev().take(5) {
        assert_eq!(patterns.first_match(&key.replace('.', "-")), Some(&place));
    }
}

/// 21 kB of such expressions took 18 seconds and 3.4 GB.
#[test]
fn the_memory_of_all_expressions_has_a_limit() {
    let heavy: Vec<String> = (0..1000).map(|index| format!(r"(?:\w{{60}}){index}")).collect();
    let texts = [object(&heavy), object([r"(?:\w{60}){1000}"])];
    let refusals = texts.map(|text| parse::<usize>(&text).unwrap_err());
    expect![[r#"
        the patterns are too large: compiled, expressions may take at most 4 MiB together at line 1 column 20781
        the patterns are too large: compiled, expressions may take at most 4 MiB together at line 1 column 23"#]]
    .assert_eq(&refusals.join("\n"));
    assert!(parse::<usize>(&object(["(".repeat(1 << 18)])).unwrap_err().contains("is too large"));
}
