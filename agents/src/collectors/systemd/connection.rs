//! The connection to the manager, over the system bus.
//!
//! Not over the manager's own socket (`/run/systemd/private`): there it signs with its well-known name, which the
//! library refuses, and answers root alone. On the bus everybody may ask.

use std::collections::HashMap;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use smol_str::SmolStr;
use tokio::net::UnixStream;
use zbus::{Connection, Message, MessageStream, OwnedObjectPath, OwnedVariant, connection, fdo, message};

use super::properties::{UNIT_INTERFACE, Values, interface_of, unit_of_path};

const MANAGER: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER_INTERFACE: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const BUS: &str = "org.freedesktop.DBus";
/// Messages that wait to be read; then the manager waits.
const QUEUE_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// There is no manager to talk to now.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// A machine, or a container, without systemd or without a bus.
    #[error(
        "no systemd here: nobody listens at {0}; in a container mount the host's /run/dbus, or set \
         `systemd.bus_socket`"
    )]
    NoBus(String),
    /// A bus without systemd on it.
    #[error("no systemd here: nobody is {MANAGER} on the bus at {0}")]
    NoManager(String),
    /// A bus or manager that cannot be used.
    #[error("cannot talk to systemd over the bus at {path}: {source}")]
    Refused {
        /// Socket.
        path: String,
        /// Why.
        source: zbus::Error,
    },
    /// A connection that ended.
    #[error("systemd or the bus has gone")]
    Closed,
}

impl Unreachable {
    /// Tells nothing there from something that does not work.
    pub fn because(path: &Path, source: zbus::Error) -> Self {
        let path = path.display().to_string();
        match &source {
            zbus::Error::InputOutput(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Self::NoBus(path)
            }
            zbus::Error::FDO(error) if matches!(**error, fdo::Error::NameHasNoOwner(_)) => {
                Self::NoManager(path)
            }
            _ => Self::Refused { path, source },
        }
    }
}

/// What the manager says of its own accord.
pub enum Notice {
    /// Properties of a unit, of one of its interfaces.
    Changed {
        /// Unit.
        unit: SmolStr,
        /// Interface.
        interface: String,
        /// Those that changed and more.
        values: Values,
    },
    /// A unit is no longer loaded.
    Removed(SmolStr),
}

/// A unit as the manager lists it.
pub struct Listed {
    /// Name.
    pub unit: SmolStr,
    /// `ActiveState`.
    pub active: String,
    /// `SubState`.
    pub sub: String,
    path: OwnedObjectPath,
}

/// A connection, subscribed: what the manager says of its own accord.
pub struct Manager {
    caller: Caller,
    stream: MessageStream,
    /// Who the manager is on this bus.
    owner: String,
}

/// Asks the manager. Its answers come only while [`Manager::next`] is waited for as well.
#[derive(Clone)]
pub struct Caller(Connection);

type Row = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

impl Manager {
    /// Connects and asks to be told of changes.
    ///
    /// # Errors
    /// [`Unreachable`]
    pub async fn connect(bus_socket: &Path) -> Result<Self, Unreachable> {
        Self::open(bus_socket).await.map_err(|source| Unreachable::because(bus_socket, source))
    }

    async fn open(path: &Path) -> zbus::Result<Self> {
        let socket = UnixStream::connect(path).await?.into_std()?;
        let connection = connection::Builder::unix_stream(socket)
            .max_queued(QUEUE_MAX)
            .method_timeout(ANSWER_MAX)
            .build()
            .await?;
        let stream = MessageStream::from(&connection);
        let caller = Caller(connection);
        let owner = caller.join_bus().await?;
        caller.call(MANAGER_PATH, MANAGER_INTERFACE, "Subscribe", &()).await?;
        Ok(Self { caller, stream, owner })
    }

    /// Asks the manager at the other end.
    pub fn caller(&self) -> Caller {
        self.caller.clone()
    }

    /// What the manager says next; none when the connection is over.
    pub async fn next(&mut self) -> Option<Notice> {
        loop {
            let message = self.stream.next().await?.ok()?;
            if message.message_type() != message::Type::Signal {
                continue;
            }
            match self.read(&message) {
                Read::Notice(notice) => return Some(notice),
                Read::Nothing => {}
                Read::OtherManager => return None,
            }
        }
    }

    fn read(&self, message: &Message) -> Read {
        let header = message.header();
        let sender = header.sender().map(|name| name.as_str());
        let member = header.member().map(|name| name.as_str()).unwrap_or_default();
        if sender == Some(BUS) && member == "NameOwnerChanged" {
            return Read::OtherManager;
        }
        // Anybody on a bus may send anybody a signal.
        if sender != Some(&self.owner) {
            return Read::Nothing;
        }
        let body = message.body();
        match member {
            "PropertiesChanged" => {
                let unit = header.path().and_then(|path| unit_of_path(path.as_str()));
                let read = body.deserialize::<(String, HashMap<String, OwnedVariant>, Vec<String>)>();
                match (unit, read) {
                    (Some(unit), Ok((interface, values, _))) => {
                        Read::Notice(Notice::Changed { unit, interface, values })
                    }
                    _ => Read::Nothing,
                }
            }
            "UnitRemoved" => match body.deserialize::<(String, OwnedObjectPath)>() {
                Ok((unit, _)) => Read::Notice(Notice::Removed(unit.into())),
                Err(_) => Read::Nothing,
            },
            _ => Read::Nothing,
        }
    }
}

impl Caller {
    /// Asks the bus for the manager's messages; gives the manager's name there.
    async fn join_bus(&self) -> zbus::Result<String> {
        let rules = [
            format!(
                "type='signal',sender='{MANAGER}',interface='{PROPERTIES}',path_namespace='{MANAGER_PATH}/unit'"
            ),
            format!("type='signal',sender='{MANAGER}',interface='{MANAGER_INTERFACE}',member='UnitRemoved'"),
            format!("type='signal',sender='{BUS}',member='NameOwnerChanged',arg0='{MANAGER}'"),
        ];
        let bus = Some(BUS);
        for rule in rules {
            let path = "/org/freedesktop/DBus";
            self.0.call_method(bus, path, bus, "AddMatch", &rule).await?;
        }
        let path = "/org/freedesktop/DBus";
        let answer = self.0.call_method(bus, path, bus, "GetNameOwner", &MANAGER).await?;
        answer.body().deserialize()
    }

    async fn call<B>(&self, path: &str, interface: &str, method: &str, body: &B) -> zbus::Result<Message>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        self.0.call_method(Some(MANAGER), path, Some(interface), method, body).await
    }

    /// All units that are loaded.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn list(&self) -> zbus::Result<Vec<Listed>> {
        let answer = self.call(MANAGER_PATH, MANAGER_INTERFACE, "ListUnits", &()).await?;
        let rows: Vec<Row> = answer.body().deserialize()?;
        let listed = |row: Row| Listed { unit: row.0.into(), active: row.3, sub: row.4, path: row.6 };
        Ok(rows.into_iter().map(listed).collect())
    }

    /// All properties of a listed unit, of its type and those every unit has.
    ///
    /// # Errors
    /// When it does not answer, or has forgotten the unit.
    pub async fn properties(&self, listed: &Listed) -> zbus::Result<Values> {
        let mut all = Values::new();
        for interface in interface_of(&listed.unit).into_iter().chain([UNIT_INTERFACE.to_owned()]) {
            let answer = self.call(listed.path.as_str(), PROPERTIES, "GetAll", &interface).await?;
            all.extend(answer.body().deserialize::<Values>()?);
        }
        Ok(all)
    }
}

enum Read {
    Notice(Notice),
    Nothing,
    OtherManager,
}
