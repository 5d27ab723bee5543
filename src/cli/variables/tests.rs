use super::*;
use crate::cli::generate::tool;
use crate::storage::snapshot;
use expect_test::expect;

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

/// The completed command line, or the refusal.
fn of(line: &str, variables: &[(&str, &str)]) -> String {
    let variables: Vec<_> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
    match complete_by(&words(line), &variables) {
        Ok(completed) => command_line::join(completed.words),
        Err(problem) => snapshot(problem).trim_end().to_owned(),
    }
}

const INIT: &str = "cntlora init model -a acts -o out";

/// Each kind of option: with a value, with several values, a flag, and a counted one.
#[test]
fn variables_stand_for_options() {
    let lines = [
        of(INIT, &[("CNTLORA_THREADS", "3"), ("CNTLORA_MAX_RANK", "8")]),
        of(INIT, &[("CNTLORA_TARGET", "q_proj,v_proj 'two words'"), ("CNTLORA_BUDGET", "100")]),
        of(INIT, &[("CNTLORA_FORCE", "True"), ("CNTLORA_STRICT", "0"), ("CNTLORA_VERBOSE", "2")]),
        of("cntlora init model", &[("CNTLORA_ACTIVATIONS", "a b"), ("CNTLORA_OUT", "out")]),
        of("cntlora generate slurm model -a x -o y --parts 2 -- --rank 8", &[("CNTLORA_CPUS", "4")]),
    ];
    expect![[r#"
        cntlora init model -a acts -o out '--max-rank=8' '--threads=3'
        cntlora init model -a acts -o out '--target=q_proj,v_proj' '--target=two words' '--budget=100'
        cntlora init model -a acts -o out --force --verbose --verbose
        cntlora init model '--activations=a' '--activations=b' '--out=out'
        cntlora generate slurm model -a x -o y --parts 2 '--cpus=4' -- --rank 8"#]]
    .assert_eq(&lines.join("\n"));
}

/// The command line wins, also over variables of other options that exclude the given one.
#[test]
fn the_command_line_wins() {
    let lines = [
        of(&format!("{INIT} --rank 4"), &[("CNTLORA_RANK", "8"), ("CNTLORA_ENERGY", "0.9")]),
        of(&format!("{INIT} --energy 0.5"), &[("CNTLORA_RANK", "8"), ("CNTLORA_MOMENTS", "m")]),
        of(&format!("{INIT} -q"), &[("CNTLORA_VERBOSE", "1")]),
    ];
    expect![[r#"
        cntlora init model -a acts -o out --rank 4
        cntlora init model -a acts -o out --energy 0.5
        cntlora init model -a acts -o out -q"#]]
    .assert_eq(&lines.join("\n"));
}

/// Variables of other commands, of tests, and empty ones change nothing. Neither do variables when help is asked for.
#[test]
fn other_commands_stay_as_they_are() {
    let variables = [
        ("CNTLORA_RANK", "8"),
        ("CNTLORA_OUT", "elsewhere"),
        ("CNTLORA_INCLUDE", "q"),
        ("CNTLORA_TEST_KILL", "1"),
        ("CNTLORA_THREADS", ""),
        ("CNTLORA_FOREIGN", "1"),
    ];
    for line in [
        "cntlora convert trained --init adapter --out plain",
        "cntlora moments acts --out m",
        "cntlora verify adapter",
        "cntlora init --help",
        "cntlora",
        "cntlora record model --rank 3",
        "cntlora generate man",
    ] {
        assert_eq!(of(line, &variables), line);
    }
    assert_eq!(
        of("cntlora convert trained", &[("CNTLORA_CONVERT_RANK", "4"), ("CNTLORA_CONVERT_OUT", "x")]),
        "cntlora convert trained '--rank=4' '--out=x'"
    );
}

#[test]
fn variables_that_cannot_be_read_are_named() {
    let refusals = [
        of(INIT, &[("CNTLORA_FORCE", "maybe")]),
        of(INIT, &[("CNTLORA_VERBOSE", "many")]),
        of(INIT, &[("CNTLORA_EXCLUDE", "'open")]),
    ];
    expect![[r#"
        the variable CNTLORA_FORCE: expected true or false for --force, found "maybe"
        the variable CNTLORA_VERBOSE: expected a number from 0 to 9 for --verbose, found "many"
        the variable CNTLORA_EXCLUDE: a quote is not closed in "\'open""#]]
    .assert_eq(&refusals.join("\n"));
}

/// A typing error is told. Variables of other programs are not.
#[test]
fn similar_names_are_told() {
    let variables = [("CNTLORA_RANKS", "8"), ("CNTLORA_MINILM", "x"), ("CNTLORA_THREDS", "2")];
    let variables = variables.map(|(name, value)| (name.to_owned(), OsString::from(value)));
    let completed = complete_by(&words(INIT), &variables).unwrap();
    expect![[r#"
        CNTLORA_RANKS has no effect; a similar variable is CNTLORA_RANK
        CNTLORA_THREDS has no effect; a similar variable is CNTLORA_THREADS"#]]
    .assert_eq(&warning(&completed.unknown).unwrap());
    assert_eq!(warning(&[]), None);
}

/// Different options of one command have different variables, and a variable has one meaning in all commands. No variable looks like
/// one of the tests.
#[test]
fn a_variable_has_one_meaning() {
    let tool = tool();
    let mut meanings: std::collections::BTreeMap<String, BTreeSet<String>> = Default::default();
    for (path, command) in leaves(&tool, &[]) {
        let mut own = BTreeSet::new();
        for arg in command.get_arguments().filter(|arg| is_option(arg)) {
            let name = name_of(&tool, &path, arg).unwrap();
            assert!(own.insert(name.clone()), "{path:?} {name}");
            assert!(!name.starts_with(OF_TESTS), "{name}");
            meanings
                .entry(name)
                .or_default()
                .insert(format!("{arg} {:?}", arg.get_help().map(ToString::to_string)));
        }
    }
    assert!(meanings.len() > 60, "{}", meanings.len());
    for (name, meanings) in meanings {
        assert_eq!(meanings.len(), 1, "{name}: {meanings:?}");
    }
}

/// The recorded command is one that a shell runs with the same options.
#[test]
fn the_recorded_command_has_the_variables() {
    let variables =
        [("CNTLORA_TARGET".to_owned(), "q_proj 'v proj'".into()), ("CNTLORA_SEED".to_owned(), "3".into())];
    let completed = complete_by(&words(INIT), &variables).unwrap();
    let process = crate::cli::terminal::Process::new(&words(INIT), completed.used, None);
    expect![[r#"CNTLORA_TARGET="q_proj 'v proj'" CNTLORA_SEED=3 cntlora init model -a acts -o out"#]]
        .assert_eq(process.command_line());
}
