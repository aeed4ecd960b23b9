//! `--pipeline`: who is told everything at once, and what becomes of a proxy that does not take it.

use super::world::World;
use super::{TARGET, addr, config};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;
use ztun::config::{Credentials, EngineConfig, Pipeline};
use ztun::engine::{SocketError, SocketId};
use ztun::time::Duration;

const GREETING: [u8; 3] = [5, 1, 0];
const METHOD: [u8; 2] = [5, 0];
const REPLY: [u8; 10] = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
/// UDP ASSOCIATE from anywhere.
const ASSOCIATE: [u8; 10] = [5, 3, 0, 1, 0, 0, 0, 0, 0, 0];
/// CONNECT to the target.
const CONNECT: [u8; 10] = [5, 1, 0, 1, 203, 0, 113, 5, 0, 80];

/// Flows that are granted before a proxy is worth a trial.
const FLOWS: usize = 32;

/// A flow that waits for its answer, and the connection that it has to the proxy.
fn asked(world: &mut World) -> (SocketHandle, SocketId) {
    let app = world.connect(addr(TARGET));
    let socket = world.accept_dialled();
    (app, socket)
}

/// A flow goes through, step by step.
fn stepwise(world: &mut World) {
    let (app, socket) = asked(world);
    world.grant(socket);
    assert_eq!(world.tcp(app).state(), State::Established);
}

/// A flow goes through, with everything said at once.
fn at_once(world: &mut World) {
    let (app, socket) = asked(world);
    assert_eq!(world.take_written(socket), [&GREETING[..], &CONNECT].concat());
    world.push(socket, &METHOD);
    assert_eq!(world.tcp(app).state(), State::SynSent, "no octet of the app before the grant");
    world.push(socket, &REPLY);
    assert_eq!(world.tcp(app).state(), State::Established);
}

/// A proxy that has granted so many flows that a trial is under way: the world and the trial's connection, on which everything was said.
fn on_trial() -> (World, SocketId) {
    let mut world = World::new(config(), false);
    for _ in 0..FLOWS {
        assert!(world.dialled.is_empty(), "no trial yet");
        stepwise(&mut world);
    }
    let trial = world.accept_dialled();
    assert_eq!(world.take_written(trial), [&GREETING[..], &ASSOCIATE].concat());
    (world, trial)
}

fn coping() -> World {
    let (mut world, trial) = on_trial();
    world.push(trial, &METHOD);
    world.push(trial, &[5, 7, 0, 1, 0, 0, 0, 0, 0, 0]);
    assert!(!world.is_open(trial));
    world
}

#[test]
fn a_proxy_is_told_all_at_once_when_it_has_answered_a_trial() {
    let (mut world, trial) = on_trial();
    stepwise(&mut world);
    world.push(trial, &[&METHOD[..], &REPLY].concat());
    assert!(!world.is_open(trial), "the association is nobody's");
    assert_eq!(world.engine.associations(), 0);
    for _ in 0..2 * FLOWS {
        at_once(&mut world);
    }
    assert!(world.dialled.is_empty(), "one trial is enough");
    at_once(&mut coping());
}

/// It reads the greeting and throws away what came with it.
#[test]
fn a_proxy_that_forgets_the_request_of_a_trial_is_spoken_to_step_by_step_and_no_app_notices() {
    let (mut world, trial) = on_trial();
    world.push(trial, &METHOD);
    stepwise(&mut world);
    world.advance(Duration::from_millis(10_100));
    assert!(!world.is_open(trial));
    for _ in 0..2 * FLOWS {
        stepwise(&mut world);
    }
    assert!(world.dialled.is_empty(), "for good");
}

#[test]
fn a_proxy_that_ends_a_trial_is_spoken_to_step_by_step() {
    let ends: [fn(&mut World, SocketId); 4] = [
        |world, trial| world.fail(trial, SocketError::Reset),
        |world, trial| world.push_eof(trial),
        |world, trial| world.push(trial, b"400 what?"),
        // As a server does that has waited for a request.
        |world, trial| world.push(trial, &[5, 0, 5, 1, 0, 1, 0, 0, 0, 0, 0, 0]),
    ];
    for end in ends {
        let (mut world, trial) = on_trial();
        end(&mut world, trial);
        assert!(!world.is_open(trial));
        for _ in 0..2 * FLOWS {
            stepwise(&mut world);
        }
        assert!(world.dialled.is_empty());
        assert_eq!(world.engine.stats().pipeline_fallbacks, 0);
    }
}

/// Another server stands in its place, which does not cope.
#[test]
fn a_dialogue_that_ends_before_its_method_is_made_again_step_by_step_unseen() {
    let mut world = coping();
    let (first, a) = asked(&mut world);
    let (second, b) = asked(&mut world);
    world.take_written(a);
    world.fail(a, SocketError::Reset);
    world.push(b, &[5]);
    world.push_eof(b);
    assert_eq!(world.engine.stats().pipeline_fallbacks, 2);
    for app in [first, second] {
        assert_eq!(world.tcp(app).state(), State::SynSent, "the app has not noticed");
        let socket = world.accept_dialled();
        world.grant(socket);
        assert_eq!(world.tcp(app).state(), State::Established);
    }
    stepwise(&mut world);
    assert_eq!(world.engine.stats().dials_failed, 0);
}

/// A request that may have been heard is never repeated.
#[test]
fn a_dialogue_that_ends_after_its_method_is_the_last_one_and_is_not_made_again() {
    let mut world = coping();
    let (app, socket) = asked(&mut world);
    world.push(socket, &METHOD);
    world.push_eof(socket);
    assert_eq!(world.tcp(app).state(), State::Closed);
    assert!(world.dialled.is_empty());
    stepwise(&mut world);

    let mut world = coping();
    let (_, socket) = asked(&mut world);
    world.push(socket, &METHOD);
    world.advance(Duration::from_millis(10_100));
    assert!(!world.is_open(socket) && world.dialled.is_empty());
    stepwise(&mut world);
}

#[test]
fn a_refusal_is_the_targets_and_says_nothing_of_the_proxy() {
    let mut world = coping();
    let (app, socket) = asked(&mut world);
    world.push(socket, &[5, 0, 5, 5, 0, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(world.tcp(app).state(), State::Closed);
    at_once(&mut world);
}

#[test]
fn a_proxy_that_fails_again_and_again_gets_no_more_trials() {
    let mut world = coping();
    for round in 1.. {
        let (app, socket) = asked(&mut world);
        world.push_eof(socket);
        let again = world.accept_dialled();
        world.grant(again);
        assert_eq!(world.tcp(app).state(), State::Established);
        // That one counts.
        for _ in 1..FLOWS {
            stepwise(&mut world);
        }
        if round == 3 {
            break;
        }
        let trial = world.accept_dialled();
        world.push(trial, &[&METHOD[..], &REPLY].concat());
        at_once(&mut world);
    }
    for _ in 0..2 * FLOWS {
        stepwise(&mut world);
    }
    assert!(world.dialled.is_empty());
}

/// Credentials are said ahead only where they are the only way in.
#[test]
fn user_and_password_go_along_with_a_proxy_that_wants_them() {
    let auth = b"\x01\x05alice\x06secret";
    for (method, offer) in [(2, vec![5, 1, 2]), (0, vec![5, 1, 0])] {
        let mut base = config();
        base.proxies[0].credentials = Some(Credentials { user: "alice".into(), password: "secret".into() });
        let mut world = World::new(base, false);
        for _ in 0..FLOWS {
            let (_, socket) = asked(&mut world);
            assert_eq!(world.take_written(socket), [5, 2, 0, 2]);
            world.push(socket, &[5, method]);
            if method == 2 {
                assert_eq!(world.take_written(socket), auth);
                world.push(socket, &[1, 0]);
            }
            world.push(socket, &REPLY);
        }
        let auth: &[u8] = if method == 2 { auth } else { &[] };
        let answer: &[u8] = if method == 2 { &[5, 2, 1, 0] } else { &[5, 0] };
        let trial = world.accept_dialled();
        assert_eq!(world.take_written(trial), [&offer[..], auth, &ASSOCIATE].concat());
        world.push(trial, &[answer, &REPLY].concat());
        let (app, socket) = asked(&mut world);
        assert_eq!(world.take_written(socket), [&offer[..], auth, &CONNECT].concat());
        world.push(socket, &[answer, &REPLY].concat());
        assert_eq!(world.tcp(app).state(), State::Established);

        // Its operator changes his mind: that is found out without anybody's loss.
        let (app, socket) = asked(&mut world);
        world.push(socket, &[5, 0xff]);
        let again = world.accept_dialled();
        assert_eq!(world.take_written(again), [5, 2, 0, 2]);
        world.push(again, &[5, 0]);
        world.push(again, &REPLY);
        assert_eq!(world.tcp(app).state(), State::Established);
    }
}

#[test]
fn on_is_always_and_off_is_never() {
    let mut world = World::new(EngineConfig { pipeline: Pipeline::On, ..config() }, false);
    for _ in 0..2 * FLOWS {
        at_once(&mut world);
    }
    assert!(world.dialled.is_empty(), "nothing is to be found out");
    let mut world = World::new(EngineConfig { pipeline: Pipeline::Off, ..config() }, false);
    for _ in 0..2 * FLOWS {
        stepwise(&mut world);
    }
    assert!(world.dialled.is_empty());
}

/// Whoever answers elsewhere may be another.
#[test]
fn another_network_is_found_out_about_anew() {
    let mut world = coping();
    world.engine.pause();
    world.engine.resume(world.now);
    stepwise(&mut world);
}
