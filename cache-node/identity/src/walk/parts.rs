//! Content parts: text, media by the hash of what they point at, all else as JSON.

use super::{Walker, marker};
use crate::json::{KeySpace, Span, Text, Value};
use crate::{NoChain, Out};

/// A content part, as it is going to be written.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Text(Text),
    Media { kind: Media, payload: Text },
    Json(Value),
}

/// What a media part holds; the value is the byte in the canonical form.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Media {
    Image = b'I',
    Audio = b'A',
    AudioUrl = b'U',
    Video = b'V',
    File = b'F',
}

/// What a part's `type` says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Media(Media),
    Other,
}

impl Kind {
    fn named(name: &[u8]) -> Self {
        match name {
            b"text" | b"input_text" | b"output_text" => Self::Text,
            b"image_url" | b"input_image" => Self::Media(Media::Image),
            b"input_audio" => Self::Media(Media::Audio),
            b"audio_url" => Self::Media(Media::AudioUrl),
            b"video_url" => Self::Media(Media::Video),
            b"file" | b"input_file" => Self::Media(Media::File),
            _ => Self::Other,
        }
    }
}

impl Media {
    /// The member that holds the payload, in order of the variants.
    fn of_member(key: &[u8]) -> Option<Self> {
        match key {
            b"image_url" => Some(Self::Image),
            b"input_audio" => Some(Self::Audio),
            b"audio_url" => Some(Self::AudioUrl),
            b"video_url" => Some(Self::Video),
            b"file" => Some(Self::File),
            _ => None,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Image => 0,
            Self::Audio => 1,
            Self::AudioUrl => 2,
            Self::Video => 3,
            Self::File => 4,
        }
    }
}

/// Names of a payload inside a media member, the one that counts first.
const PAYLOAD_KEYS: [&[u8]; 4] = [b"url", b"data", b"file_data", b"file_id"];

impl Walker<'_, '_> {
    /// Notes the elements of the array at the cursor.
    #[inline(never)]
    pub(super) fn read_parts(&mut self) -> Result<(), NoChain> {
        self.parts.clear();
        self.cursor.at += 1;
        let mut first = true;
        while self.cursor.element(&mut first)? {
            self.budget.item()?;
            let part = match self.cursor.peek() {
                Some(b'{') => self.read_part()?,
                _ => match self.cursor.value()? {
                    Value::Text(text) => Part::Text(text),
                    value => Part::Json(value),
                },
            };
            self.parts.push(part);
        }
        Ok(())
    }

    fn read_part(&mut self) -> Result<Part, NoChain> {
        let start = self.cursor.at;
        self.cursor.at += 1;
        let (mut kind, mut text, mut uuid) = (Value::Null, Value::Null, Value::Null);
        let mut payloads = [None; 5];
        let mut first = true;
        let mut space = KeySpace::default();
        while let Some(key) = self.cursor.key(&mut first)? {
            let key = key.key(self.cursor.cpu, self.cursor.body, &mut space);
            match (key, Media::of_member(key)) {
                (_, Some(media)) => payloads[media.index()] = self.payload()?,
                (b"type", _) => self.cursor.read(&mut kind)?,
                (b"text", _) => self.cursor.read(&mut text)?,
                (b"uuid", _) => self.cursor.read(&mut uuid)?,
                _ => self.cursor.skip()?,
            }
        }
        let kind = match kind {
            Value::Null => Kind::Text,
            Value::Text(kind) => Kind::named(kind.key(self.cursor.cpu, self.cursor.body, &mut space)),
            _ => Kind::Other,
        };
        let whole = Part::Json(Value::Nested(Span { start, end: self.cursor.at }));
        Ok(match kind {
            Kind::Text => text.text().map_or(whole, Part::Text),
            Kind::Media(media) => {
                let payload = payloads[media.index()].or(uuid.text());
                payload.map_or(whole, |payload| Part::Media { kind: media, payload })
            }
            Kind::Other => whole,
        })
    }

    /// The text that stands for a medium: the member itself, or the first of [`PAYLOAD_KEYS`] in it.
    fn payload(&mut self) -> Result<Option<Text>, NoChain> {
        if self.cursor.peek() != Some(b'{') {
            return Ok(self.cursor.value()?.text());
        }
        self.cursor.at += 1;
        let mut found = [Value::Null; PAYLOAD_KEYS.len()];
        let mut first = true;
        let mut space = KeySpace::default();
        while let Some(key) = self.cursor.key(&mut first)? {
            let key = key.key(self.cursor.cpu, self.cursor.body, &mut space);
            match PAYLOAD_KEYS.iter().position(|known| *known == key) {
                Some(index) => self.cursor.read(&mut found[index])?,
                None => self.cursor.skip()?,
            }
        }
        Ok(found.into_iter().find_map(Value::text))
    }

    pub(super) fn put_parts(&mut self) -> Result<(), NoChain> {
        for index in 0..self.parts.len() {
            if index > 0 {
                self.put_byte(marker::NEXT_PART);
            }
            match self.parts[index] {
                Part::Text(text) => self.put_value(Value::Text(text))?,
                Part::Media { kind, payload } => self.put_media(kind, payload)?,
                Part::Json(value) => self.put_json(value)?,
            }
        }
        Ok(())
    }

    fn put_media(&mut self, kind: Media, payload: Text) -> Result<(), NoChain> {
        let hash = self.hash_text(payload)?;
        let [a, b, c, d, e, f, g, h] = hash.to_le_bytes();
        self.sink.put(&[marker::BINARY, kind as u8, a, b, c, d, e, f, g, h]);
        self.media = self.media.saturating_add(1);
        Ok(())
    }
}
