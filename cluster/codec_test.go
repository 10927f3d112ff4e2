package cluster

import (
	"bytes"
	"encoding/json"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"perch/topic"
)

func TestCodec(t *testing.T) {
	for name, tt := range map[string]struct {
		p *topic.Publication
		o topic.PublishOptions
	}{
		"plain":   {&topic.Publication{Data: []byte(`{"a":1}`)}, topic.PublishOptions{}},
		"empty":   {&topic.Publication{Data: []byte{}}, topic.PublishOptions{Delta: true}},
		"tags":    {&topic.Publication{Data: []byte("x"), Tags: map[string]string{"a": "b", "": "c", "d": ""}}, topic.PublishOptions{}},
		"version": {&topic.Publication{Data: []byte("x")}, topic.PublishOptions{Version: 1 << 60, VersionEpoch: "e"}},
		"info": {&topic.Publication{Data: []byte("x"), Info: &topic.ClientInfo{User: "u", Client: "c", ConnInfo: []byte("{}")}},
			topic.PublishOptions{Delta: true, Version: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := decode(encode("news:ü.>*", tt.p, &tt.o))
			if err != nil {
				t.Fatal(err)
			}
			if r.topic != "news:ü.>*" || r.version != tt.o.Version || r.versionEpoch != tt.o.VersionEpoch ||
				r.flags&flagDelta != 0 != tt.o.Delta || !bytes.Equal(r.pub.Data, tt.p.Data) ||
				!maps.Equal(r.pub.Tags, tt.p.Tags) || !reflect.DeepEqual(r.pub.Info, tt.p.Info) {
				t.Errorf("%s became %+v", tt.p.Data, r)
			}
		})
	}
	if r, err := decode(encodeRemoved("a", 1<<40)); err != nil || r.topic != "a" || r.previous != 1<<40 || r.pub != nil {
		t.Errorf("removed: %+v, %v", r, err)
	}
	if r, err := decode(encodeEpoch("abc", 1<<40)); err != nil || r.epoch != "abc" || r.previous != 1<<40 || r.pub != nil {
		t.Errorf("epoch: %+v, %v", r, err)
	}
}

// FuzzDecode: what anybody may send on our subjects is read or refused.
func FuzzDecode(f *testing.F) {
	f.Add(encode("news:x", &topic.Publication{Data: []byte("x"), Tags: map[string]string{"a": "b"},
		Info: &topic.ClientInfo{User: "u"}}, &topic.PublishOptions{Version: 2, Delta: true}))
	f.Add(encodeRemoved("news:x", 7))
	f.Add(encodeEpoch("abc", 7))
	f.Add([]byte{})
	f.Add([]byte{formatOne, flagTags, 0, 255, 255, 255, 255, 15})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decode(b)
		name, nameErr := topicOf(b)
		if err == nil && (nameErr != nil || name != r.topic) {
			t.Errorf("topic %q, %v, but %q", name, nameErr, r.topic)
		}
		if err != nil || r.pub == nil {
			return
		}
		again, err := decode(encode(r.topic, r.pub, &topic.PublishOptions{Version: r.version, VersionEpoch: r.versionEpoch}))
		if err != nil || again.topic != r.topic || !bytes.Equal(again.pub.Data, r.pub.Data) || !maps.Equal(again.pub.Tags, r.pub.Tags) {
			t.Errorf("%+v became %+v, %v", r, again, err)
		}
	})
}

// TestToken: each name has a token of its own, which is one of a subject.
func TestToken(t *testing.T) {
	seen := map[string]string{}
	names := []string{"", "a", "a.b", "a=2Eb", "a b", "a*", ">", "*", "ü", "\x00", "$x:#y", "!epoch", "A", "=", "a\n"}
	for _, name := range names {
		k := namespaceToken(name)
		if before, ok := seen[k]; ok {
			t.Errorf("%q and %q are both %q", before, name, k)
		}
		seen[k] = name
		if strings.ContainsAny(k, ".*> \t\r\n!\x00") || k == "" {
			t.Errorf("%q becomes %q", name, k)
		}
	}
}

func TestPlainAck(t *testing.T) {
	for text, want := range map[string]uint64{
		`{"stream":"perch_h_news","seq":123456}`:                   123456,
		`{"stream":"perch_h_news", "seq":1}`:                       0,
		`{"stream":"s","domain":"hub","seq":18446744073709551}`:    18446744073709551,
		`{"stream":"s","seq":18446744073709551615}`:                0, // json tells
		`{"stream":"s","seq":5,"duplicate":true}`:                  0,
		`{"error":{"code":400,"err_code":1},"stream":"s","seq":0}`: 0,
		`{"stream":"s","error":{"code":400,"err_code":1},"seq":7}`: 0,
		`{"stream":"s","seq":}`:                                    0,
		`{"stream":"s","seq":-1}`:                                  0,
		`{"stream":"s","seq":1`:                                    0,
		`{"stream":"s","batch":"x","count":3,"seq":9}`:             0,
		``: 0,
	} {
		if got := plainAck([]byte(text)); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
	// So the server answers.
	n := newNode(t, Options{}, news).waitReady()
	m, err := n.link.nc.Request(n.streamFor("news:x").stored+"x", encode("news:x", &topic.Publication{}, &topic.PublishOptions{}), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := readAck(m, nil); err != nil || a.Seq == 0 || plainAck(m.Data) != a.Seq {
		t.Errorf("%s is no plain answer: %v", m.Data, err)
	}
}

// FuzzAck holds that what is read by hand is what encoding/json reads.
func FuzzAck(f *testing.F) {
	f.Add([]byte(`{"stream":"perch_h_news","seq":123456}`))
	f.Add([]byte(`{"stream":"s","seq":5,"duplicate":true}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		seq := plainAck(b)
		var a ack
		if err := json.Unmarshal(b, &a); seq != 0 && err == nil && (a.Seq != seq || a.Error != nil || a.Duplicate) {
			t.Errorf("%q: %d, json reads %+v", b, seq, a)
		}
	})
}
