//! `orlop certs`: the command around the crate of that name.

use crate::failure::say;
use ::certs::{
    AUTHORITY_LIFE_DAYS, AuthorityKind, Done, Error, Finding, Identity, LIFE_DAYS, Level, Moment,
    Name, Other, Phase, Pki, Purpose, Renewal, Request, Role, Step, What,
};
use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `orlop certs`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Make the authorities, in a directory that stays on one machine.
    Init {
        #[command(flatten)]
        dir: Dir,
        /// How long the authorities are valid, in days.
        #[arg(long, value_name = "DAYS", default_value_t = AUTHORITY_LIFE_DAYS)]
        days: u32,
    },
    /// Make a certificate with a key of its own: server, peer, shard, keeper, client, proxy, admin.
    Make(Make),
    /// Renew in place what is due, and bring files of trust up to date.
    Renew(Renew),
    /// Say whether certificates will do: expiry, names, chains, keys; rustls' and Go's views.
    Check(Check),
    /// Change an authority, step by step, without a moment at which somebody is refused.
    RotateCa(RotateCa),
}

#[derive(clap::Args)]
struct Dir {
    /// The directory with authorities and certificates.
    #[arg(long, value_name = "DIR", default_value = "pki")]
    dir: PathBuf,
}

#[derive(clap::Args)]
struct Make {
    #[command(flatten)]
    dir: Dir,
    /// What its holder may do.
    #[arg(value_parser = role())]
    role: Role,
    /// Who it is: a node's name, `kube-apiserver`, `etcdctl`. Several make several.
    #[arg(required = true)]
    name: Vec<String>,
    /// Names and addresses that others connect to, besides its own name and loopback.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = Name::parse)]
    san: Vec<Name>,
    /// Add this machine's name and the addresses of its interfaces.
    #[arg(long)]
    san_of_this_host: bool,
    /// How long it is valid, in days.
    #[arg(long, value_name = "DAYS", default_value_t = LIFE_DAYS)]
    days: u32,
    /// Say what would be made, and make nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(clap::Args)]
struct Renew {
    #[command(flatten)]
    dir: Dir,
    /// Which ones, as ROLE/NAME; all if none is given.
    #[arg(value_name = "ROLE/NAME")]
    which: Vec<String>,
    /// Renew those that are not due as well.
    #[arg(long)]
    all: bool,
    /// Renew what ends within so many days [default: in the last third of its life].
    #[arg(long, value_name = "DAYS")]
    within_days: Option<u32>,
    /// Make a new key too. Otherwise the key stays as it is, and need not be in the directory.
    #[arg(long)]
    new_key: bool,
    /// Add a name or an address.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = Name::parse, requires = "which")]
    san: Vec<Name>,
    /// Leave a name or an address out.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = Name::parse, requires = "which")]
    remove_san: Vec<Name>,
    /// Another life than the old one's, in days.
    #[arg(long, value_name = "DAYS", requires = "which")]
    days: Option<u32>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(clap::Args)]
struct Check {
    /// The directory with authorities, or one certificate's, wherever it was copied to.
    #[arg(value_name = "DIR", default_value = "pki", conflicts_with = "cert")]
    path: PathBuf,
    /// Check this certificate instead, whoever made it.
    #[arg(long, value_name = "FILE", requires = "ca")]
    cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The authorities that whoever meets it trusts.
    #[arg(long, value_name = "FILE", requires = "cert")]
    ca: Option<PathBuf>,
    /// It is shown by a client.
    #[arg(long, requires = "cert")]
    client: bool,
    /// It is shown by the server at this name or address. Several are all checked.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = Name::parse)]
    host: Vec<Name>,
    /// What expires within so many days is a problem, if that is the last fifth of its life.
    #[arg(long, value_name = "DAYS", default_value_t = 7)]
    within_days: u32,
    /// Print problems and notes only.
    #[arg(short, long)]
    quiet: bool,
}

#[derive(clap::Args)]
struct RotateCa {
    #[command(flatten)]
    dir: Dir,
    /// Which authority.
    #[arg(value_parser = kind())]
    authority: AuthorityKind,
    /// The step: announce the next one, switch to it, finish with the previous one; or cancel an
    /// announcement.
    #[arg(value_parser = step())]
    step: Step,
    /// How long the next one is valid, in days.
    #[arg(long, value_name = "DAYS", default_value_t = AUTHORITY_LIFE_DAYS)]
    days: u32,
}

fn role() -> impl clap::builder::TypedValueParser<Value = Role> {
    PossibleValuesParser::new(Role::ALL.map(Role::as_str)).try_map(|text| text.parse::<Role>())
}

fn kind() -> impl clap::builder::TypedValueParser<Value = AuthorityKind> {
    PossibleValuesParser::new(AuthorityKind::ALL.map(AuthorityKind::as_str)).map(|text| {
        let found = AuthorityKind::ALL.into_iter().find(|k| k.as_str() == text);
        found.unwrap_or(AuthorityKind::Main)
    })
}

fn step() -> impl clap::builder::TypedValueParser<Value = Step> {
    PossibleValuesParser::new(["announce", "switch", "finish", "cancel"]).map(|text| {
        match text.as_str() {
            "switch" => Step::Switch,
            "finish" => Step::Finish,
            "cancel" => Step::Cancel,
            _ => Step::Announce,
        }
    })
}

/// Exit code 0: all is done, or well; 1: something could not be done, or is a problem.
pub(crate) fn run(args: Args) -> ExitCode {
    let all_well = match args.command {
        Command::Init { dir, days } => init(&dir.dir, days),
        Command::Make(args) => make(&args),
        Command::Renew(args) => renew(&args),
        Command::Check(args) => check(&args),
        Command::RotateCa(args) => rotate(&args),
    };
    match all_well {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn complain(error: &Error) {
    eprintln!("orlop certs: {error}");
}

fn init(dir: &Path, days: u32) -> Result<bool, Error> {
    let (_, made) = Pki::init(dir, days, Moment::now())?;
    for kind in &made {
        say!(
            "{}: made, {days} days",
            dir.join("ca").join(kind.as_str()).display()
        );
    }
    if made.is_empty() {
        say!(
            "{}: all authorities are there already; nothing was changed",
            dir.display()
        );
    } else {
        say!(
            "Keep {} on this machine only, and back it up: its keys can make any certificate. \
             Next: orlop certs make server NAME",
            dir.join("ca").display()
        );
    }
    Ok(true)
}

fn make(args: &Make) -> Result<bool, Error> {
    let pki = Pki::open(&args.dir.dir, Moment::now())?;
    let mut names = args.san.clone();
    if args.san_of_this_host {
        names.extend(::certs::of_this_host());
    }
    let mut all_well = true;
    for name in &args.name {
        let made = Identity::new(args.role, name).map_err(Error::from);
        let made = made.and_then(|identity| {
            let request = Request {
                identity,
                names: names.clone(),
                life_days: args.days,
            };
            pki.make(&request, args.dry_run)
        });
        all_well &= report(made, args.dry_run);
    }
    Ok(all_well)
}

/// Says what was done to a directory; false if it could not be done.
fn report(done: Result<Done, Error>, dry_run: bool) -> bool {
    let done = match done {
        Ok(done) => done,
        Err(error) => {
            complain(&error);
            return false;
        }
    };
    let path = done.path.display();
    let would = if dry_run { "would be " } else { "" };
    let names: Vec<_> = done.names.iter().map(Name::to_string).collect();
    let names = match names.as_slice() {
        [] => String::new(),
        names => format!(", for {}", names.join(", ")),
    };
    let until = done.not_after;
    match done.what {
        What::Made => say!("{path}: {would}made, until {until}{names}"),
        What::Renewed => say!("{path}: {would}renewed, until {until}{names}"),
        What::Trust => say!("{path}: its files of trust {would}renewed, its certificate is kept"),
        What::Kept => {}
    }
    if done.ends_with_authority {
        eprintln!(
            "orlop certs: {path} ends on {until}, with its authority: change that one (orlop certs rotate-ca)"
        );
    }
    true
}

fn renew(args: &Renew) -> Result<bool, Error> {
    let pki = Pki::open(&args.dir.dir, Moment::now())?;
    let which = match args.which.as_slice() {
        [] => pki.list()?,
        named => named
            .iter()
            .map(|text| format!("orlop://{text}").parse().map_err(Error::from))
            .collect::<Result<Vec<Identity>, Error>>()?,
    };
    let renewal = Renewal {
        all: args.all,
        within_days: args.within_days,
        new_key: args.new_key,
        add: args.san.clone(),
        remove: args.remove_san.clone(),
        life_days: args.days,
        dry_run: args.dry_run,
    };
    let all_well = renew_these(&pki, &which, &renewal);
    // What is nobody's certificate stops no renewal, and is said.
    let strangers = pki.strangers()?;
    for path in &strangers {
        eprintln!(
            "orlop certs: {}: its name is none of a certificate: move it away",
            path.display()
        );
    }
    Ok(all_well && strangers.is_empty())
}

/// One that fails keeps no other from being renewed.
fn renew_these(pki: &Pki, which: &[Identity], renewal: &Renewal) -> bool {
    let mut all_well = true;
    for identity in which {
        all_well &= report(pki.renew(identity, renewal), renewal.dry_run);
    }
    all_well
}

fn check(args: &Check) -> Result<bool, Error> {
    let now = Moment::now();
    let hosts: Vec<_> = args.host.iter().map(Name::to_string).collect();
    let findings = match (&args.cert, &args.ca) {
        (Some(cert), Some(ca)) => {
            let client = args.client.then_some(Purpose::Client);
            let hosts = hosts.into_iter().map(Purpose::Server);
            let other = Other {
                cert: cert.clone(),
                key: args.key.clone(),
                ca: ca.clone(),
                purposes: client.into_iter().chain(hosts).collect(),
            };
            ::certs::check_other(&other, now, args.within_days)
        }
        _ if args.path.join("ca").is_dir() => {
            ::certs::check_pki(&args.path, now, args.within_days)?
        }
        _ => ::certs::check_directory(&args.path, &hosts, now, args.within_days),
    };
    for finding in &findings {
        show(finding, args.quiet);
    }
    Ok(findings.iter().all(|found| found.level < Level::Problem))
}

fn show(finding: &Finding, quiet: bool) {
    let word = match finding.level {
        Level::Good if quiet => return,
        Level::Good => "ok",
        Level::Note => "note",
        Level::Problem => "PROBLEM",
    };
    say!("{word:<8}{}: {}", finding.subject, finding.text);
}

fn rotate(args: &RotateCa) -> Result<bool, Error> {
    let pki = Pki::open(&args.dir.dir, Moment::now())?;
    let kind = args.authority;
    let phase = pki.rotate(kind, args.step, args.days)?;
    say!("the {kind} authority: {phase}");
    let all_well = renew_these(&pki, &pki.list()?, &Renewal::default());
    let copy = "copy the directories above to their machines, all of them";
    match phase {
        Phase::Settled => say!("Next: {copy}."),
        Phase::Announced => say!("Next: {copy}; then: orlop certs rotate-ca {kind} switch"),
        Phase::Switched => say!("Next: {copy}; then: orlop certs rotate-ca {kind} finish"),
    }
    Ok(all_well)
}
