//! The connection of one worker: messages leave in order, are late, get lost and are repeated, and so are their
//! acknowledgements. As with the publisher of the bus, repetitions may overtake each other.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;
use tapio_runtime::bus::{BusError, Headers, Outgoing, TrySubmitError, Untold};
use tapio_schemas::names::HEADER_FENCE_EPOCH;

use super::chance::Chance;
use super::scene::MS;
use super::server::SharedServer;
use crate::outbox::Outlet;

/// How bad the network is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// Longest way to the server.
    pub delay: u64,
    /// Messages in a thousand that do not arrive.
    pub lost: u64,
    /// Acknowledgements in a thousand that do not arrive.
    pub ack_lost: u64,
}

struct Flight {
    outgoing: Outgoing,
    /// When it arrives at the server, if that is still to come.
    arrives: Option<u64>,
    is_first_attempt: bool,
    /// The server has it.
    is_stored: bool,
    /// When its end is known to the sender.
    end: Option<(u64, Result<(), BusError>)>,
}

/// Messages under way.
pub struct Wire {
    server: SharedServer,
    chance: Chance,
    weather: Weather,
    window: usize,
    flights: VecDeque<Flight>,
    last_arrival: u64,
    /// The process does not run: nothing is repeated.
    pub frozen: bool,
}

pub type SharedWire = Rc<RefCell<Wire>>;

impl Wire {
    pub fn shared(server: &SharedServer, chance: Chance, weather: Weather, window: usize) -> SharedWire {
        let flights = VecDeque::new();
        let server = Rc::clone(server);
        let wire = Self { server, chance, weather, window, flights, last_arrival: 0, frozen: false };
        Rc::new(RefCell::new(wire))
    }

    /// What arrives until now.
    pub fn step(&mut self) {
        let now = self.server.borrow().now;
        let mut due: Vec<(u64, usize)> = Vec::new();
        for (index, flight) in self.flights.iter().enumerate() {
            if let Some(at) =
                flight.arrives.filter(|at| *at <= now && (flight.is_first_attempt || !self.frozen))
            {
                due.push((at, index));
            }
        }
        due.sort_unstable();
        for (_, index) in due {
            self.arrive(index, now);
        }
    }

    fn arrive(&mut self, index: usize, now: u64) {
        let mut server = self.server.borrow_mut();
        let flight = &mut self.flights[index];
        flight.is_first_attempt = false;
        if !server.is_up() {
            server.count("messages repeated after an outage");
            flight.arrives = Some(server.down_until.max(server.frozen_until) + self.chance.below(200 * MS));
            return;
        }
        if self.chance.per_mille(self.weather.lost) {
            server.count("messages lost");
            flight.arrives = Some(now + 50 * MS + self.chance.below(500 * MS));
            return;
        }
        // A finding is repeated long before its id is forgotten; what is forgotten here is what another owner published.
        let is_known = flight.is_stored && flight.outgoing.headers.get(HEADER_FENCE_EPOCH).is_some();
        let result = if is_known { Ok(()) } else { server.store(&flight.outgoing) };
        flight.is_stored |= result.is_ok();
        if result.is_ok() && self.chance.per_mille(self.weather.ack_lost) {
            server.count("acknowledgements lost");
            flight.arrives = Some(now + 50 * MS + self.chance.below(1500 * MS));
            return;
        }
        flight.arrives = None;
        flight.end = Some((now + self.chance.below(self.weather.delay), result));
    }

    /// The process is killed: of what it had sent for the first time some arrives still, in order.
    pub fn cut(&mut self) {
        let now = self.server.borrow().now;
        let sent = self.flights.iter().filter(|f| f.is_first_attempt && f.arrives.is_some()).count();
        let mut arrives = self.chance.below(sent as u64 + 1);
        for index in 0..self.flights.len() {
            let flight = &mut self.flights[index];
            if flight.is_first_attempt && flight.arrives.is_some() && arrives > 0 {
                arrives -= 1;
                self.arrive(index, now);
            }
        }
        self.flights.clear();
    }
}

/// A worker's end of the wire.
pub struct WireOutlet {
    pub wire: SharedWire,
    /// Epoch of the fence that was taken.
    pub fence: u64,
}

impl Outlet for WireOutlet {
    fn try_submit(&mut self, outgoing: Outgoing) -> Result<(), TrySubmitError> {
        let wire = &mut *self.wire.borrow_mut();
        if wire.flights.len() >= wire.window {
            return Err(TrySubmitError::Full(outgoing));
        }
        let now = wire.server.borrow().now;
        wire.last_arrival = wire.last_arrival.max(now + wire.chance.below(wire.weather.delay));
        let arrives = Some(wire.last_arrival);
        wire.flights.push_back(Flight {
            outgoing,
            arrives,
            is_first_attempt: true,
            is_stored: false,
            end: None,
        });
        Ok(())
    }

    fn try_end(&mut self) -> Option<Result<(), BusError>> {
        let wire = &mut *self.wire.borrow_mut();
        let now = wire.server.borrow().now;
        wire.flights.front()?.end.as_ref().filter(|(at, _)| *at <= now)?;
        wire.flights.pop_front()?.end.map(|(_, result)| result)
    }

    fn stamp(&self, headers: Headers) -> Headers {
        headers.with(HEADER_FENCE_EPOCH, self.fence.to_string())
    }

    fn tell(&self, _subject: &str, _payload: Bytes) -> Result<(), Untold> {
        let wire = self.wire.borrow();
        let mut server = wire.server.borrow_mut();
        if !server.is_up() {
            return Err(Untold::Away);
        }
        server.count("first words told");
        Ok(())
    }
}
