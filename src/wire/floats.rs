//! Values of Rust as JSON text, with the floats that JSON does not have: serde_json writes `null` for one, Python its
//! name. Such a float is carried as `json` says; everything else is serde_json's.

use serde::Serialize;
use serde::ser::{self, Serializer};
use serde_json::value::{RawValue, to_raw_value};

use super::json;

/// A value as JSON text.
///
/// # Errors
/// The value cannot be written as JSON.
pub(crate) fn to_raw(value: &(impl Serialize + ?Sized)) -> Result<Box<RawValue>, serde_json::Error> {
    to_raw_value(&Any(value))
}

/// A value whose floats may be any.
struct Any<'a, T: ?Sized>(&'a T);

impl<T: Serialize + ?Sized> Serialize for Any<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(Floats(serializer))
    }
}

/// Passes everything on, and looks at floats.
struct Floats<S>(S);

/// A float that JSON does not have.
fn carry<S: Serializer>(serializer: S, float: f64) -> Result<S::Ok, S::Error> {
    let number = RawValue::from_string(json::of_float(float)).map_err(ser::Error::custom)?;
    number.serialize(serializer)
}

macro_rules! pass_on {
    ($($name:ident($($value:ident: $kind:ty),*);)+) => {$(
        fn $name(self, $($value: $kind),*) -> Result<S::Ok, S::Error> {
            self.0.$name($($value),*)
        }
    )+};
}

macro_rules! open {
    ($($name:ident($($value:ident: $kind:ty),*) -> $compound:ident;)+) => {$(
        fn $name(self, $($value: $kind),*) -> Result<Self::$compound, S::Error> {
            self.0.$name($($value),*).map(Floats)
        }
    )+};
}

impl<S: Serializer> Serializer for Floats<S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Floats<S::SerializeSeq>;
    type SerializeTuple = Floats<S::SerializeTuple>;
    type SerializeTupleStruct = Floats<S::SerializeTupleStruct>;
    type SerializeTupleVariant = Floats<S::SerializeTupleVariant>;
    type SerializeMap = Floats<S::SerializeMap>;
    type SerializeStruct = Floats<S::SerializeStruct>;
    type SerializeStructVariant = Floats<S::SerializeStructVariant>;

    fn serialize_f32(self, value: f32) -> Result<S::Ok, S::Error> {
        match value.is_finite() {
            true => self.0.serialize_f32(value),
            false => carry(self.0, value.into()),
        }
    }

    fn serialize_f64(self, value: f64) -> Result<S::Ok, S::Error> {
        match value.is_finite() {
            true => self.0.serialize_f64(value),
            false => carry(self.0, value),
        }
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.0.serialize_some(&Any(value))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Result<S::Ok, S::Error> {
        self.0.serialize_newtype_struct(name, &Any(value))
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.0.serialize_newtype_variant(name, index, variant, &Any(value))
    }

    fn collect_str<T: std::fmt::Display + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.0.collect_str(value)
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }

    pass_on! {
        serialize_bool(value: bool);
        serialize_i8(value: i8);
        serialize_i16(value: i16);
        serialize_i32(value: i32);
        serialize_i64(value: i64);
        serialize_i128(value: i128);
        serialize_u8(value: u8);
        serialize_u16(value: u16);
        serialize_u32(value: u32);
        serialize_u64(value: u64);
        serialize_u128(value: u128);
        serialize_char(value: char);
        serialize_str(value: &str);
        serialize_bytes(value: &[u8]);
        serialize_none();
        serialize_unit();
        serialize_unit_struct(name: &'static str);
        serialize_unit_variant(name: &'static str, index: u32, variant: &'static str);
    }

    open! {
        serialize_seq(length: Option<usize>) -> SerializeSeq;
        serialize_tuple(length: usize) -> SerializeTuple;
        serialize_tuple_struct(name: &'static str, length: usize) -> SerializeTupleStruct;
        serialize_tuple_variant(name: &'static str, index: u32, variant: &'static str, length: usize) -> SerializeTupleVariant;
        serialize_map(length: Option<usize>) -> SerializeMap;
        serialize_struct(name: &'static str, length: usize) -> SerializeStruct;
        serialize_struct_variant(name: &'static str, index: u32, variant: &'static str, length: usize) -> SerializeStructVariant;
    }
}

macro_rules! items {
    ($($compound:ident::$name:ident($($key:ident)?);)+) => {$(
        impl<S: ser::$compound> ser::$compound for Floats<S> {
            type Ok = S::Ok;
            type Error = S::Error;

            fn $name<T: Serialize + ?Sized>(&mut self, $($key: &'static str,)? value: &T) -> Result<(), S::Error> {
                self.0.$name($($key,)? &Any(value))
            }

            fn end(self) -> Result<S::Ok, S::Error> {
                self.0.end()
            }
        }
    )+};
}

items! {
    SerializeSeq::serialize_element();
    SerializeTuple::serialize_element();
    SerializeTupleStruct::serialize_field();
    SerializeTupleVariant::serialize_field();
    SerializeStruct::serialize_field(key);
    SerializeStructVariant::serialize_field(key);
}

impl<S: ser::SerializeMap> ser::SerializeMap for Floats<S> {
    type Ok = S::Ok;
    type Error = S::Error;

    /// A key is no number: what JSON does not have is refused there.
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), S::Error> {
        self.0.serialize_key(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        self.0.serialize_value(&Any(value))
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.0.end()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Serialize)]
    enum Shape {
        Unit,
        New(f64),
        Pair(f64, u8),
        Named { x: f32 },
    }

    #[derive(Serialize)]
    struct All {
        shapes: Vec<Shape>,
        map: BTreeMap<String, Option<f64>>,
        pair: (f64, &'static str),
        json: super::super::Json,
        #[serde(flatten)]
        more: BTreeMap<&'static str, f64>,
    }

    #[test]
    fn p_015_floats_that_json_has_not_are_written_wherever_they_are() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        let all = All {
            shapes: vec![
                Shape::Unit,
                Shape::New(nan),
                Shape::Pair(inf, 1),
                Shape::Named { x: f32::NEG_INFINITY },
            ],
            map: BTreeMap::from([("a".to_owned(), Some(nan)), ("b".to_owned(), None)]),
            pair: (1.5, "é"),
            json: serde_json::from_str("[1e0,  2]").unwrap(),
            more: BTreeMap::from([("n", nan)]),
        };
        let text = to_raw(&all).unwrap();
        let left = String::from_utf8(json::restored(text.get().as_bytes()).into_owned()).unwrap();
        assert_eq!(
            left,
            r#"{"shapes":["Unit",{"New":NaN},{"Pair":[1e99999,1]},{"Named":{"x":-1e99999}}],"#.to_owned()
                + r#""map":{"a":NaN,"b":null},"pair":[1.5,"é"],"json":[1e0,  2],"n":NaN}"#
        );
        assert_eq!(
            to_raw(&json::parse::<serde_json::Value>("[1, null]").unwrap())
                .unwrap()
                .get(),
            "[1,null]"
        );
    }
}
