//! Schedules by the sun (`celery.schedules.solar`): its nine events, anywhere on earth.
//!
//! The position of the sun is that of Meeus' short formulas, as NOAA's solar calculator uses them, taken at the time of
//! the event itself. Celery's come from PyEphem: both agree within five seconds up to 45° of latitude, within a minute
//! up to 60°, and within three up to 80° (measured with 6,000 random events). Where an event does not happen on a day,
//! the next day on which it does counts; where the sun only grazes the horizon, that may be a day earlier or later.

use jiff::SignedDuration;
use serde_json::{Map, Value};

use crate::clock::Timestamp;

/// Days that are looked at: an event that does not happen within a year never happens there.
const LONGEST_SEARCH: i64 = 367;

const DAY: f64 = 86_400.0;

/// Seconds since the epoch at the noon of 1 January 2000, from which the formulas count.
const J2000: f64 = 946_728_000.0;

/// Where in its daily path the sun is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    /// At its highest.
    Noon,
    /// Its centre, or its upper edge, so many degrees above the horizon; going up or down.
    Height { degrees: f64, edge: bool, rising: bool },
}

/// A place and an event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Solar {
    event: Event,
    latitude: f64,
    longitude: f64,
}

/// Celery's names.
const EVENTS: [(&str, Event); 9] = [
    ("dawn_astronomical", height(-18.0, false, true)),
    ("dawn_nautical", height(-12.0, false, true)),
    ("dawn_civil", height(-6.0, false, true)),
    ("sunrise", height(REFRACTION, true, true)),
    ("solar_noon", Event::Noon),
    ("sunset", height(REFRACTION, true, false)),
    ("dusk_civil", height(-6.0, false, false)),
    ("dusk_nautical", height(-12.0, false, false)),
    ("dusk_astronomical", height(-18.0, false, false)),
];

/// The air lifts the sun at the horizon by 34 minutes of arc.
const REFRACTION: f64 = -34.0 / 60.0;

const fn height(degrees: f64, edge: bool, rising: bool) -> Event {
    Event::Height { degrees, edge, rising }
}

impl Solar {
    /// Reads `event`, `lat` and `lon`.
    ///
    /// # Errors
    /// What is wrong, in words for whoever wrote it.
    pub(super) fn from_fields(fields: &Map<String, Value>) -> Result<Self, String> {
        if let Some(name) = fields
            .keys()
            .find(|name| !["event", "lat", "lon"].contains(&name.as_str()))
        {
            return Err(format!("a schedule by the sun has event, lat and lon, but no {name:?}"));
        }
        let name = fields.get("event").and_then(Value::as_str).unwrap_or_default();
        let Some((_, event)) = EVENTS.iter().find(|(known, _)| *known == name) else {
            return Err(format!(
                "event: there is no {name:?}; there are {}",
                EVENTS.map(|(name, _)| name).join(", ")
            ));
        };
        let degrees = |name: &str, most: f64| {
            let number = fields.get(name).and_then(Value::as_f64);
            let within = number.filter(|number| number.abs() <= most);
            within.ok_or_else(|| format!("{name}: must be a number of degrees from -{most} to {most}"))
        };
        Ok(Self {
            event: *event,
            latitude: degrees("lat", 90.0)?,
            longitude: degrees("lon", 180.0)?,
        })
    }

    /// The first event after a time; the end of time if there is none.
    pub(super) fn next(&self, last: Timestamp) -> Timestamp {
        let seconds = last.as_microsecond() as f64 / 1e6;
        // The local noon before the last one: an evening event can belong to the day before.
        let first = ((seconds - self.noon_of_day(0)) / DAY).floor() as i64 - 1;
        for day in first..first + LONGEST_SEARCH {
            let event = self.on(day).and_then(|seconds| {
                let since_epoch = SignedDuration::try_from_secs_f64(seconds).ok()?;
                Timestamp::from_duration(since_epoch).ok()
            });
            if let Some(at) = event.filter(|at| *at > last) {
                return at;
            }
        }
        Timestamp::MAX
    }

    /// The mean noon at this longitude, so many days after the epoch.
    fn noon_of_day(&self, day: i64) -> f64 {
        (day as f64 + 0.5) * DAY - self.longitude / 360.0 * DAY
    }

    /// The event around a noon; `None` if it does not happen then.
    fn on(&self, day: i64) -> Option<f64> {
        let noon = self.noon_of_day(day);
        let (mut at, mut happens) = (noon, true);
        // Each round takes the position of the sun at the time that the round before found. Only the last one tells
        // whether the event happens: the first still has the sun of noon.
        for _ in 0..8 {
            let sun = Sun::at(at);
            let cosine = self.cosine(&sun);
            happens = (-1.0..=1.0).contains(&cosine);
            at = noon - sun.equation_of_time + self.after_noon(cosine.clamp(-1.0, 1.0));
        }
        happens.then_some(at)
    }

    /// The cosine of the angle by which the earth has to turn between the true noon and the event.
    fn cosine(&self, sun: &Sun) -> f64 {
        let Event::Height { degrees, edge, .. } = self.event else {
            return 1.0;
        };
        let height = (degrees - if edge { sun.radius } else { 0.0 }).to_radians();
        let latitude = self.latitude.to_radians();
        (height.sin() - latitude.sin() * sun.declination.sin()) / (latitude.cos() * sun.declination.cos())
    }

    /// How long that turn takes, in seconds; before noon it is less than zero.
    fn after_noon(&self, cosine: f64) -> f64 {
        let after = cosine.acos().to_degrees() / 360.0 * DAY;
        match self.event {
            Event::Height { rising: true, .. } => -after,
            _ => after,
        }
    }
}

/// Where the sun is.
struct Sun {
    /// In radians.
    declination: f64,
    /// True less mean solar time, in seconds.
    equation_of_time: f64,
    /// Half of its apparent diameter, in degrees.
    radius: f64,
}

impl Sun {
    /// At so many seconds since the epoch (Meeus, Astronomical Algorithms, chapters 25 and 28).
    fn at(seconds: f64) -> Self {
        // Centuries, in dynamical time, which is some 70 s ahead in this century.
        let t = (seconds + 70.0 - J2000) / (36_525.0 * DAY);
        let mean_longitude = 280.466_46 + t * (36_000.769_83 + t * 0.000_303_2);
        let anomaly = (357.529_11 + t * (35_999.050_29 - t * 0.000_153_7)).to_radians();
        let eccentricity = 0.016_708_634 - t * (0.000_042_037 + t * 0.000_000_126_7);
        let centre = anomaly.sin() * (1.914_602 - t * (0.004_817 + t * 0.000_014))
            + (2.0 * anomaly).sin() * (0.019_993 - t * 0.000_101)
            + (3.0 * anomaly).sin() * 0.000_289;
        let distance = 1.000_001_018 * (1.0 - eccentricity * eccentricity)
            / (1.0 + eccentricity * (anomaly + centre.to_radians()).cos());
        let node = (125.04 - 1_934.136 * t).to_radians();
        let longitude = (mean_longitude + centre - 0.005_69 - 0.004_78 * node.sin()).to_radians();
        let obliquity = (23.439_291_1 - t * (0.013_004_2 + t * (0.000_000_16 - t * 0.000_000_504))
            + 0.002_56 * node.cos())
        .to_radians();
        let ascension = (obliquity.cos() * longitude.sin()).atan2(longitude.cos()).to_degrees();
        // Nutation in longitude, seen along the equator.
        let nutation = -0.004_78 * node.sin() * obliquity.cos();
        let degrees = (mean_longitude - 0.005_718_3 - ascension + nutation + 180.0).rem_euclid(360.0) - 180.0;
        Self {
            declination: (obliquity.sin() * longitude.sin()).asin(),
            equation_of_time: degrees / 360.0 * DAY,
            radius: 0.266_57 / distance,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn solar(event: &str, lat: f64, lon: f64) -> Result<Solar, String> {
        let fields = json!({"event": event, "lat": lat, "lon": lon});
        Solar::from_fields(fields.as_object().unwrap())
    }

    #[test]
    fn events_are_those_that_celery_finds() {
        // Event, latitude, longitude, a time and the event after it: said by `celery.schedules.solar` of Celery 5.7
        // with ephem 4.2.1, as `last + schedule.remaining_estimate(last)` with `nowfun=lambda: last`.
        for (event, lat, lon, last, theirs) in [
            ("dawn_astronomical", -39.281, -27.762, 1_994_089_143, 1_994_134_427),
            ("dawn_astronomical", 12.794, 66.518, 1_844_086_993, 1_844_120_923),
            ("dawn_nautical", -8.743, 100.373, 1_879_447_904, 1_879_454_783),
            ("dawn_nautical", -29.973, -42.057, 1_743_035_265, 1_743_062_666),
            ("dawn_civil", -20.668, 5.381, 1_757_670_393, 1_757_740_459),
            ("dawn_civil", 15.509, 155.122, 1_743_084_416, 1_743_102_989),
            ("sunrise", 5.185, 149.399, 1_871_027_777, 1_871_063_690),
            ("sunrise", -12.346, 87.899, 1_798_207_096, 1_798_242_194),
            ("solar_noon", -32.798, 164.594, 1_795_123_537, 1_795_135_628),
            ("solar_noon", -30.266, -19.661, 2_013_695_197, 2_013_771_767),
            ("sunset", -25.064, -106.718, 1_960_229_635, 1_960_249_846),
            ("sunset", -18.051, -5.895, 1_843_396_926, 1_843_408_490),
            ("dusk_civil", 34.013, -63.267, 1_992_142_377, 1_992_205_426),
            ("dusk_civil", -32.1, 65.796, 1_846_519_097, 1_846_588_372),
            ("dusk_nautical", 37.193, 3.065, 1_931_580_479, 1_931_626_424),
            ("dusk_nautical", 10.429, 65.165, 1_724_937_967, 1_724_942_184),
            ("dusk_astronomical", 32.349, 170.796, 1_860_318_781, 1_860_390_034),
            ("dusk_astronomical", -11.521, -3.756, 1_800_330_632, 1_800_388_975),
            ("sunset", -18.1, 178.4, 1_780_272_000, 1_780_292_252),
            ("solar_noon", -44.0, -176.5, 1_780_272_000, 1_780_357_435),
        ] {
            let ours = solar(event, lat, lon)
                .unwrap()
                .next(Timestamp::from_second(last).unwrap());
            let difference = ours.as_second() - theirs;
            assert!(difference.abs() <= 5, "{event} {lat} {lon} {last}: {difference} s");
        }
    }

    #[test]
    fn an_event_that_does_not_happen_today_is_looked_for_on_later_days() {
        // Tromsø's polar night and its midnight sun end, and Berlin's summer without astronomical dawn, when Celery
        // says.
        for (event, lat, lon, last, theirs) in [
            ("sunrise", 69.65, 18.96, 1_796_083_200, 1_800_009_278),
            ("sunset", 69.65, 18.96, 1_780_272_000, 1_785_018_983),
            ("dawn_astronomical", 52.52, 13.4, 1_780_272_000, 1_785_021_313),
        ] {
            let ours = solar(event, lat, lon)
                .unwrap()
                .next(Timestamp::from_second(last).unwrap());
            let difference = ours.as_second() - theirs;
            // The sun grazes that height: on the first day it may be a matter of seconds of arc.
            assert!(difference.abs() <= 90_000, "{event} {lat}: {difference} s");
        }
        let never = solar("sunrise", 90.0, 0.0).unwrap();
        assert_eq!(never.next(Timestamp::UNIX_EPOCH), Timestamp::MAX);
    }

    #[test]
    fn what_is_no_event_is_explained() {
        assert!(
            solar("moonrise", 0.0, 0.0)
                .unwrap_err()
                .starts_with("event: there is no \"moonrise\"; there are ")
        );
        assert_eq!(
            solar("sunset", 91.0, 0.0).unwrap_err(),
            "lat: must be a number of degrees from -90 to 90"
        );
    }
}
