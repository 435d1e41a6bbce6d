//! Shell completions, made from the table of verbs.

use crate::Error;
use crate::help::{COMMON, FLAGS};
use crate::tool::{Tool, Type, Verb};

pub(crate) fn script(tool: &Tool, shell: &str) -> Result<String, Error> {
    match shell {
        "bash" => Ok(bash(tool)),
        "zsh" => Ok(format!(
            "#compdef {0}\nautoload -U +X bashcompinit && bashcompinit\n{1}",
            tool.name,
            bash(tool)
        )),
        "fish" => Ok(fish(tool)),
        other => Err(Error::usage(format!("completions are there for bash, zsh and fish, not {other:?}"))),
    }
}

fn first(text: &'static str) -> &'static str {
    text.split(' ').next().unwrap_or(text)
}

fn verbs(tool: &Tool) -> Vec<&'static str> {
    tool.verbs.iter().map(|verb| verb.name).chain(COMMON.iter().map(|(name, _)| first(name))).collect()
}

/// What may follow a verb: the words that a bare one is chosen from, flags, fields.
fn words(verb: &Verb) -> Vec<String> {
    let bare = verb.fields.iter().filter(|field| verb.operands.contains(&field.name));
    let choices = bare.flat_map(|field| match field.kind {
        Type::OneOf(words) => words,
        _ => &[],
    });
    let flags = FLAGS.iter().map(|(flag, _)| first(flag).to_owned());
    let own = verb.fields.iter().filter_map(|field| field.flag.map(|flag| format!("--{flag}")));
    let fields = verb.fields.iter().map(|field| format!("{}=", field.name));
    choices.map(|word| (*word).to_owned()).chain(flags).chain(own).chain(fields).collect()
}

fn bash(tool: &Tool) -> String {
    let function = format!("_{}", tool.name.replace('-', "_"));
    let cases: String = tool
        .verbs
        .iter()
        .map(|verb| format!("    {}) words=\"{}\" ;;\n", verb.name, words(verb).join(" ")))
        .collect();
    format!(
        "{function}() {{\n  local words current=${{COMP_WORDS[COMP_CWORD]}}\n  \
         if [ \"$COMP_CWORD\" = 1 ]; then words=\"{}\"; else case ${{COMP_WORDS[1]}} in\n{cases}    esac; fi\n  \
         COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n  \
         [[ ${{COMPREPLY[0]-}} == *= ]] && compopt -o nospace\n  return 0\n}}\n\
         complete -o default -F {function} {}\n",
        verbs(tool).join(" "),
        tool.name,
    )
}

fn fish(tool: &Tool) -> String {
    let mut text =
        format!("complete -c {0} -n __fish_use_subcommand -f -a '{1}'\n", tool.name, verbs(tool).join(" "));
    for verb in tool.verbs {
        text += &format!(
            "complete -c {} -n '__fish_seen_subcommand_from {}' -a '{}'\n",
            tool.name,
            verb.name,
            words(verb).join(" ")
        );
    }
    text
}
