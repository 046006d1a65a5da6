//! Makes a command for every stage of [`ALL`], from its declaration.

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Error, FromArgMatches, Subcommand};

use super::{Command, RunArgs, Tool, Whole};
use crate::stage::{CommandOption, Stage};
use crate::stages::all::ALL;

const SHARD: &str = "shard";
const MERGE: &str = "merge";

impl Subcommand for Command {
    fn augment_subcommands(command: clap::Command) -> clap::Command {
        let command = Whole::augment_subcommands(command);
        Tool::augment_subcommands(command.subcommands(ALL.iter().map(|stage| of(*stage))))
    }

    fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        Whole::has_subcommand(name) || Tool::has_subcommand(name) || stage(name).is_some()
    }
}

impl FromArgMatches for Command {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let Some((name, own)) = matches.subcommand() else {
            return Err(Error::raw(ErrorKind::MissingSubcommand, "a command is expected: `kvcsr --help` lists them"));
        };
        if let Some(stage) = stage(name) {
            let mut args = RunArgs::from_arg_matches(own)?;
            if stage.declaration().sliced.is_some() {
                let of = |name| own.get_one::<String>(name);
                let merge = of(MERGE).map(|count| format!("merge/{count}"));
                args.slice = of(SHARD).cloned().or(merge).unwrap_or_default();
            }
            args.overrides.extend(stage.declaration().options.iter().filter_map(|option| given(option, own)));
            return Ok(Self::Stage(stage, args));
        }
        if Whole::has_subcommand(name) {
            return Whole::from_arg_matches(matches).map(Self::Whole);
        }
        Tool::from_arg_matches(matches).map(|tool| Self::Tool(Box::new(tool)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn stage(name: &str) -> Option<&'static dyn Stage> {
    ALL.iter().copied().find(|stage| stage.name() == name)
}

/// The command of one stage.
fn of(stage: &'static dyn Stage) -> clap::Command {
    let declaration = stage.declaration();
    let command = RunArgs::augment_args(clap::Command::new(declaration.name)).about(declaration.about);
    let command = command.args(declaration.options.iter().map(|option| argument(option, declaration.options)));
    match declaration.sliced {
        Some(_) => command.args(slices()),
        None => command,
    }
}

/// The two options of stages that can run in slices.
fn slices() -> [Arg; 2] {
    let shard = Arg::new(SHARD).long(SHARD).value_name("I/N").conflicts_with(MERGE);
    let merge = Arg::new(MERGE).long(MERGE).value_name("N");
    [
        shard.help("Make only slice I of N, in a folder of its own (for example on another machine)"),
        merge.help("Join N finished slices, which must all come from one configuration, and remove them"),
    ]
}

/// The argument of an option. It conflicts with other options that set the same parameter.
fn argument(option: &'static CommandOption, all: &'static [CommandOption]) -> Arg {
    let rivals = all.iter().filter(|other| other.parameter == option.parameter && other.name != option.name);
    let about = format!("{}; the same as set=\"{}={}\"", option.about, option.parameter, written(option, option.value));
    let arg = Arg::new(option.name).long(option.name).help(about).conflicts_with_all(rivals.map(|other| other.name));
    match option.value {
        Some(name) => arg.value_name(name),
        None => arg.action(ArgAction::SetTrue),
    }
}

/// The override that stands for the option, if it was given.
fn given(option: &CommandOption, matches: &ArgMatches) -> Option<String> {
    let value = match option.value {
        Some(_) => Some(matches.get_one::<String>(option.name)?.as_str()),
        None => matches.get_flag(option.name).then_some(None)?,
    };
    Some(format!("{}={}", option.parameter, written(option, value)))
}

fn written(option: &CommandOption, value: Option<&str>) -> String {
    option.sets.replace("{}", value.unwrap_or_default())
}
