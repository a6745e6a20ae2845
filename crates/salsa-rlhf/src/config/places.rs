//! Walks a configuration with a serializer that writes nothing, and records the places of the types of
//! [`super::paths`].
use serde::{
    Serialize, Serializer,
    ser::{
        Error as _, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
        SerializeTupleStruct, SerializeTupleVariant,
    },
};

use super::paths::{DATA, MODEL, NO_EFFECT, PathKind, Places, below};

type Result<T = ()> = std::result::Result<T, serde_json::Error>;

/// The places of a configuration.
pub(super) fn of(config: &impl Serialize) -> Result<Places> {
    let mut places = Places::default();
    config.serialize(Walk { places: &mut places, place: String::new() })?;
    Ok(places)
}

/// One value, and the places recorded so far.
struct Walk<'a> {
    places: &'a mut Places,
    place: String,
}

/// The elements of a compound value.
struct Inside<'a> {
    places: &'a mut Places,
    place: String,
    next: usize,
    key: String,
}

impl<'a> Walk<'a> {
    fn inside(self) -> Inside<'a> {
        Inside { places: self.places, place: self.place, next: 0, key: String::new() }
    }

    /// An enum variant is a mapping with its name as key.
    fn variant(self, name: &str) -> Walk<'a> {
        Walk { place: below(&self.place, name), places: self.places }
    }
}

impl Inside<'_> {
    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result {
        let place = format!("{}[{}]", self.place, self.next);
        self.next += 1;
        value.serialize(Walk { places: self.places, place })
    }

    fn field<T: Serialize + ?Sized>(&mut self, key: &str, value: &T) -> Result {
        value.serialize(Walk { place: below(&self.place, key), places: self.places })
    }
}

/// Values without elements.
macro_rules! plain {
    ($($method:ident: $type:ty),*) => {
        $(fn $method(self, _: $type) -> Result {
            Ok(())
        })*
    };
}

impl<'a> Serializer for Walk<'a> {
    type Ok = ();
    type Error = serde_json::Error;
    type SerializeSeq = Inside<'a>;
    type SerializeTuple = Inside<'a>;
    type SerializeTupleStruct = Inside<'a>;
    type SerializeTupleVariant = Inside<'a>;
    type SerializeMap = Inside<'a>;
    type SerializeStruct = Inside<'a>;
    type SerializeStructVariant = Inside<'a>;

    plain! {
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_i128: i128, serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64,
        serialize_u128: u128, serialize_f32: f32, serialize_f64: f64, serialize_char: char, serialize_str: &str,
        serialize_bytes: &[u8], serialize_unit_struct: &'static str
    }

    fn serialize_none(self) -> Result {
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result {
        Ok(())
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result {
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Result {
        match name {
            MODEL => drop(self.places.inputs.insert(self.place.clone(), PathKind::Model)),
            DATA => drop(self.places.inputs.insert(self.place.clone(), PathKind::Data)),
            NO_EFFECT => drop(self.places.no_effect.insert(self.place.clone())),
            _ => {}
        }
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result {
        value.serialize(self.variant(variant))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Inside<'a>> {
        Ok(self.inside())
    }

    fn serialize_tuple(self, _: usize) -> Result<Inside<'a>> {
        Ok(self.inside())
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Inside<'a>> {
        Ok(self.inside())
    }

    fn serialize_tuple_variant(self, _: &'static str, _: u32, variant: &'static str, _: usize) -> Result<Inside<'a>> {
        Ok(self.variant(variant).inside())
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Inside<'a>> {
        Ok(self.inside())
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Inside<'a>> {
        Ok(self.inside())
    }

    fn serialize_struct_variant(self, _: &'static str, _: u32, variant: &'static str, _: usize) -> Result<Inside<'a>> {
        Ok(self.variant(variant).inside())
    }
}

macro_rules! items {
    ($($kind:ident: $method:ident),*) => {
        $(impl $kind for Inside<'_> {
            type Ok = ();
            type Error = serde_json::Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result {
                self.item(value)
            }

            fn end(self) -> Result {
                Ok(())
            }
        })*
    };
}

items! {
    SerializeSeq: serialize_element, SerializeTuple: serialize_element, SerializeTupleStruct: serialize_field,
    SerializeTupleVariant: serialize_field
}

macro_rules! fields {
    ($($kind:ident),*) => {
        $(impl $kind for Inside<'_> {
            type Ok = ();
            type Error = serde_json::Error;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result {
                self.field(key, value)
            }

            fn end(self) -> Result {
                Ok(())
            }
        })*
    };
}

fields! { SerializeStruct, SerializeStructVariant }

impl SerializeMap for Inside<'_> {
    type Ok = ();
    type Error = serde_json::Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result {
        self.key = match serde_json::to_value(key)? {
            serde_json::Value::String(key) => key,
            other => return Err(serde_json::Error::custom(format!("the key {other} of a mapping is no text"))),
        };
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result {
        let key = std::mem::take(&mut self.key);
        self.field(&key, value)
    }

    fn end(self) -> Result {
        Ok(())
    }
}
