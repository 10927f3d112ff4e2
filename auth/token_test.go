package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const hsHeader = `{"alg":"HS256","typ":"JWT"}`

func TestConnectClaims(t *testing.T) {
	now := newClock()
	v := newHMAC(t, VerifierOptions{Now: now.now})
	at := now.now().Unix()
	tests := []struct {
		name    string
		payload string
		want    Claims
	}{
		{"nothing", `{}`, Claims{}},
		{"sub and exp", fmt.Sprintf(`{"sub":"alice","exp":%d,"iat":7}`, at+60),
			Claims{Subject: "alice", ExpiresAt: at + 60, TokenExpiresAt: at + 60, IssuedAt: 7}},
		{"expire_at over exp", fmt.Sprintf(`{"sub":"a","exp":%d,"expire_at":%d}`, at+60, at+600),
			Claims{Subject: "a", ExpiresAt: at + 600, TokenExpiresAt: at + 60}},
		{"expire_at 0: never", fmt.Sprintf(`{"sub":"a","exp":%d,"expire_at":0}`, at+60),
			Claims{Subject: "a", TokenExpiresAt: at + 60}},
		{"fraction", fmt.Sprintf(`{"exp":%d.75}`, at+1), Claims{ExpiresAt: at + 1, TokenExpiresAt: at + 1}},
		{"exponent", `{"exp":2e9}`, Claims{ExpiresAt: 2e9, TokenExpiresAt: 2e9}},
		{"info and meta", `{"info": {"n":[1,"}"]} ,"meta":{"x":1}}`,
			Claims{Info: []byte(`{"n":[1,"}"]}`), Meta: []byte(`{"x":1}`)}},
		{"b64info", `{"b64info":"AAEC","info":1}`, Claims{Info: []byte{0, 1, 2}}},
		{"ids", `{"jti":"j","sid":"s","client_id":"c"}`, Claims{ID: "j", Family: "s", ClientID: "c"}},
		{"channels", `{"channels":[ "a" , "b\u00e9","" ]}`, Claims{Channels: []string{"a", "bé", ""}}},
		{"subs", `{"subs":{"a":{"info":{"x":1},"data":[1],"override":{"presence":{"value":true}}},"b":null,"c":{"b64info":"AA==","b64data":"AQ=="}}}`,
			Claims{Subs: []Sub{{Topic: "a", Info: []byte(`{"x":1}`), Data: []byte(`[1]`), Override: Override{Presence: new(true)}}, {Topic: "b"},
				{Topic: "c", Info: []byte{0}, Data: []byte{1}}}}},
		{"nulls", `{"sub":null,"exp":null,"info":null,"meta":null,"channels":null,"subs":null,"expire_at":null}`, Claims{}},
		{"escapes in names and values", `{"\u0073ub":"a\"b\\\u00e9"}`, Claims{Subject: `a"b\é`}},
		{"unknown members", `{"a":{"sub":"x"},"b":[{"exp":1}],"c":"\"}","sub":"y","d":-1.5e-3}`, Claims{Subject: "y"}},
		{"names are case-sensitive", `{"SUB":"mallory","Exp":1}`, Claims{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := v.Connect(hsRaw(t, hsHeader, tt.payload))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(*got, tt.want) {
				t.Errorf("got %+v\nwant %+v", *got, tt.want)
			}
		})
	}
}

func TestConnectRefuses(t *testing.T) {
	now := newClock()
	at := now.now().Unix()
	v := newHMAC(t, VerifierOptions{Now: now.now})
	good := hs(t, jwt.MapClaims{"sub": "alice"})
	parts := strings.Split(good, ".")
	tests := []struct {
		name  string
		token string
		want  error
	}{
		{"empty", "", ErrTokenInvalid},
		{"dots", "..", ErrTokenInvalid},
		{"two parts", parts[0] + "." + parts[1], ErrTokenInvalid},
		{"four parts", good + ".x", ErrTokenInvalid},
		{"no signature", parts[0] + "." + parts[1] + ".", ErrTokenInvalid},
		{"cut signature", good[:len(good)-4], ErrTokenInvalid},
		{"long signature", good + "AAAA", ErrTokenInvalid},
		{"very long signature", good + strings.Repeat("A", 400), ErrTokenInvalid},
		{"padding", good + "=", ErrTokenInvalid},
		{"line end", parts[0] + "." + parts[1] + "\n." + parts[2], ErrTokenInvalid},
		{"huge", hs(t, jwt.MapClaims{"info": strings.Repeat("x", maxToken)}), ErrTokenInvalid},
		{"huge header", hsRaw(t, `{"alg":"HS256","x":"`+strings.Repeat("x", maxHeader)+`"}`, `{}`), ErrTokenInvalid},
		{"header no JSON", hsRaw(t, `{"alg":"HS256"`, `{}`), ErrTokenInvalid},
		{"header no object", hsRaw(t, `"HS256"`, `{}`), ErrTokenInvalid},
		{"alg missing", hsRaw(t, `{}`, `{}`), ErrTokenInvalid},
		{"alg twice", hsRaw(t, `{"alg":"HS256","alg":"HS256"}`, `{}`), ErrTokenInvalid},
		{"alg none", hsRaw(t, `{"alg":"none"}`, `{}`), ErrTokenInvalid},
		{"alg nOnE, unsigned", rawURL.EncodeToString([]byte(`{"alg":"nOnE"}`)) + "." + parts[1] + ".", ErrTokenInvalid},
		{"alg lower case", hsRaw(t, `{"alg":"hs256"}`, `{}`), ErrTokenInvalid},
		{"alg number", hsRaw(t, `{"alg":256}`, `{}`), ErrTokenInvalid},
		{"crit", hsRaw(t, `{"alg":"HS256","crit":["exp"]}`, `{}`), ErrTokenInvalid},
		{"another HMAC", hsRaw(t, `{"alg":"HS384"}`, `{}`), ErrTokenInvalid},
		{"payload no JSON", hsRaw(t, hsHeader, `{`), ErrTokenInvalid},
		{"payload trailing", hsRaw(t, hsHeader, `{}{}`), ErrTokenInvalid},
		{"payload null", hsRaw(t, hsHeader, `null`), ErrTokenInvalid},
		{"payload array", hsRaw(t, hsHeader, `[]`), ErrTokenInvalid},
		{"payload not UTF-8", hsRaw(t, hsHeader, "{\"sub\":\"\xff\"}"), ErrTokenInvalid},
		{"sub number", hsRaw(t, hsHeader, `{"sub":1}`), ErrTokenInvalid},
		{"sub twice", hsRaw(t, hsHeader, `{"sub":"a","sub":"b"}`), ErrTokenInvalid},
		{"exp string", hsRaw(t, hsHeader, `{"exp":"9999999999"}`), ErrTokenInvalid},
		{"exp twice", hsRaw(t, hsHeader, `{"exp":9999999999,"exp":9999999999}`), ErrTokenInvalid},
		{"exp beyond", hsRaw(t, hsHeader, `{"exp":1e300}`), ErrTokenInvalid},
		{"meta array", hsRaw(t, hsHeader, `{"meta":[]}`), ErrTokenInvalid},
		{"channels object", hsRaw(t, hsHeader, `{"channels":{}}`), ErrTokenInvalid},
		{"channels of numbers", hsRaw(t, hsHeader, `{"channels":[1]}`), ErrTokenInvalid},
		{"subs array", hsRaw(t, hsHeader, `{"subs":["a"]}`), ErrTokenInvalid},
		{"subs twice the same", hsRaw(t, hsHeader, `{"subs":{"a":{},"a":{}}}`), ErrTokenInvalid},
		{"subs override wrong", hsRaw(t, hsHeader, `{"subs":{"a":{"override":{"presence":true}}}}`), ErrTokenInvalid},
		{"b64info wrong", hsRaw(t, hsHeader, `{"b64info":"?"}`), ErrTokenInvalid},
		{"subscription token", hsRaw(t, hsHeader, `{"sub":"a","channel":"news"}`), ErrTokenInvalid},
		{"not yet", hsRaw(t, hsHeader, fmt.Sprintf(`{"nbf":%d}`, at+1)), ErrTokenInvalid},
		{"expired now", hsRaw(t, hsHeader, fmt.Sprintf(`{"exp":%d}`, at)), ErrTokenExpired},
		{"exp 0", hsRaw(t, hsHeader, `{"exp":0}`), ErrTokenExpired},
		{"exp negative", hsRaw(t, hsHeader, `{"exp":-1}`), ErrTokenExpired},
		{"expire_at past", hsRaw(t, hsHeader, fmt.Sprintf(`{"exp":%d,"expire_at":%d}`, at+60, at)), ErrTokenExpired},
		{"expire_at negative", hsRaw(t, hsHeader, `{"expire_at":-1}`), ErrTokenExpired},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := v.Connect(tt.token)
			if !errors.Is(err, tt.want) || c != nil {
				t.Fatalf("got %v, %v; want %v", c, err, tt.want)
			}
			if tt.want == ErrTokenExpired && errors.Is(err, ErrTokenInvalid) {
				t.Error("expired is taken for invalid")
			}
		})
	}
	t.Run("every changed character", func(t *testing.T) {
		for i := range good {
			b := []byte(good)
			b[i] ^= 1
			if _, err := v.Connect(string(b)); !errors.Is(err, ErrTokenInvalid) {
				t.Fatalf("changed at %d: %v", i, err)
			}
		}
	})
}

func TestIssuerAndAudience(t *testing.T) {
	v := newHMAC(t, VerifierOptions{Issuer: "iss", Audience: "perch"})
	tests := []struct {
		name    string
		payload string
		ok      bool
	}{
		{"both", `{"iss":"iss","aud":"perch"}`, true},
		{"list", `{"iss":"iss","aud":["x","perch"]}`, true},
		{"escaped", `{"iss":"i\u0073s","aud":"perch"}`, true},
		{"no iss", `{"aud":"perch"}`, false},
		{"other iss", `{"iss":"iss2","aud":"perch"}`, false},
		{"no aud", `{"iss":"iss"}`, false},
		{"other aud", `{"iss":"iss","aud":["x"]}`, false},
		{"aud number", `{"iss":"iss","aud":1}`, false},
		{"aud list of numbers", `{"iss":"iss","aud":[1,"perch"]}`, false},
		{"wrong iss and expired", `{"iss":"x","aud":"perch","exp":1}`, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := v.Connect(hsRaw(t, hsHeader, tt.payload))
			if (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrTokenInvalid) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestOverride(t *testing.T) {
	v := newHMAC(t, VerifierOptions{})
	yes, no := new(true), new(false)
	for name, c := range map[string]struct {
		override string
		want     Override
		fails    bool
	}{
		"nothing": {`{}`, Override{}, false},
		"null":    {`null`, Override{}, false},
		"all": {`{"presence":{"value":true},"join_leave":{"value":false},"force_push_join_leave":{"value":true},"force_recovery":{"value":true},"force_positioning":{"value":false}}`,
			Override{yes, no, yes, yes, no}, false},
		"nulls":              {`{"presence":null,"force_recovery":{"value":null}}`, Override{ForceRecovery: no}, false},
		"no value":           {`{"presence":{}}`, Override{Presence: no}, false},
		"older names":        {`{"recover":{"value":true},"position":{"value":true}}`, Override{ForceRecovery: yes, ForcePositioning: yes}, false},
		"newer go first":     {`{"recover":{"value":true},"force_recovery":{"value":false}}`, Override{ForceRecovery: no}, false},
		"in the other order": {`{"force_positioning":{"value":false},"position":{"value":true}}`, Override{ForcePositioning: no}, false},
		"unknown":            {`{"later":1,"presence":{"value":true,"x":[]}}`, Override{Presence: yes}, false},
		"another case":       {`{"Presence":{"value":true}}`, Override{}, false},
		"bare":               {`{"presence":true}`, Override{}, true},
		"a string":           {`{"presence":{"value":"true"}}`, Override{}, true},
		"a number":           {`{"force_recovery":{"value":1}}`, Override{}, true},
		"twice":              {`{"presence":{"value":true},"presence":{"value":false}}`, Override{}, true},
		"a list":             {`[]`, Override{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			sub, err := v.Subscription(hsRaw(t, hsHeader, `{"channel":"x","override":`+c.override+`}`))
			if c.fails != errors.Is(err, ErrTokenInvalid) || err == nil && !reflect.DeepEqual(sub.Override, c.want) {
				t.Errorf("subscription token: %+v, %v", sub, err)
			}
			con, err := v.Connect(hsRaw(t, hsHeader, `{"subs":{"x":{"override":`+c.override+`}}}`))
			if c.fails != errors.Is(err, ErrTokenInvalid) || err == nil && !reflect.DeepEqual(con.Subs[0].Override, c.want) {
				t.Errorf("connection token: %+v, %v", con, err)
			}
		})
	}
}

func TestSubscriptionClaims(t *testing.T) {
	v := newHMAC(t, VerifierOptions{})
	got, err := v.Subscription(hsRaw(t, hsHeader, `{"sub":"a","channel":"news","client":"c","info":{"x":1},"jti":"j","expire_at":0,"exp":9999999999,"override":{"position":{"value":false}}}`))
	want := &SubscriptionClaims{Subject: "a", Topic: "news", Client: "c", Info: []byte(`{"x":1}`), ID: "j", TokenExpiresAt: 9999999999,
		Override: Override{ForcePositioning: new(false)}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v", got, err)
	}
	for name, payload := range map[string]string{
		"no channel": `{"sub":"a"}`, "channel number": `{"channel":1}`, "override": `{"channel":"x","override":[]}`,
	} {
		if _, err := v.Subscription(hsRaw(t, hsHeader, payload)); !errors.Is(err, ErrTokenInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := v.Subscription(hsRaw(t, hsHeader, `{"channel":"x","exp":1}`)); !errors.Is(err, ErrTokenExpired) {
		t.Errorf("expired: %v", err)
	}
}

func TestRevokedToken(t *testing.T) {
	v := newHMAC(t, VerifierOptions{Revoked: func(jti, family string) bool { return jti == "j" || family == "f" }})
	for payload, want := range map[string]bool{`{"jti":"j"}`: true, `{"sid":"f"}`: true, `{"jti":"x","sid":"y"}`: false} {
		_, err := v.Connect(hsRaw(t, hsHeader, payload))
		if errors.Is(err, ErrTokenRevoked) != want || want && !errors.Is(err, ErrTokenInvalid) {
			t.Errorf("%s: %v", payload, err)
		}
	}
	if _, err := v.Subscription(hsRaw(t, hsHeader, `{"jti":"j","channel":"x"}`)); !errors.Is(err, ErrTokenRevoked) {
		t.Errorf("subscription: %v", err)
	}
}

func TestAlgorithms(t *testing.T) {
	for alg, signer := range testKeys() {
		t.Run(alg, func(t *testing.T) {
			public := pkixPEM(t, signer)
			v := NewVerifier(VerifierOptions{Keys: newKeys(t, KeySetOptions{
				HMACSecret: testSecret,
				Keys:       []KeyOptions{{File: writeFile(t, public)}},
			})})
			tok := jwt.NewWithClaims(jwt.GetSigningMethod(alg), jwt.MapClaims{"sub": "alice"})
			s, err := tok.SignedString(signer)
			if err != nil {
				t.Fatal(err)
			}
			c, err := v.Connect(s)
			if err != nil || c.Subject != "alice" {
				t.Fatalf("got %v, %v", c, err)
			}
			if v.Cheap(s) {
				t.Error("a public-key signature is called cheap")
			}
			b := []byte(s)
			b[len(b)-10] ^= 1
			if _, err := v.Connect(string(b)); !errors.Is(err, ErrTokenInvalid) {
				t.Errorf("changed signature: %v", err)
			}
			// The public key as an HMAC secret: the classic confusion.
			forged, _ := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": "mallory"}).SignedString(public)
			if _, err := v.Connect(forged); !errors.Is(err, ErrTokenInvalid) {
				t.Errorf("algorithm confusion: %v", err)
			}
			// A right signature under the name of another algorithm of the same key.
			tok.Header["alg"] = "PS256"
			if s, err := tok.SignedString(signer); err == nil {
				if _, err := v.Connect(s); !errors.Is(err, ErrTokenInvalid) {
					t.Errorf("PS256: %v", err)
				}
			}
		})
	}
}

func TestHMACAlgorithms(t *testing.T) {
	v := newHMAC(t, VerifierOptions{})
	for _, m := range []jwt.SigningMethod{jwt.SigningMethodHS256, jwt.SigningMethodHS384, jwt.SigningMethodHS512} {
		s, _ := jwt.NewWithClaims(m, jwt.MapClaims{"sub": "a"}).SignedString([]byte(testSecret))
		if _, err := v.Connect(s); err != nil || !v.Cheap(s) {
			t.Errorf("%s: %v", m.Alg(), err)
		}
		bad, _ := jwt.NewWithClaims(m, jwt.MapClaims{"sub": "a"}).SignedString([]byte("another"))
		if _, err := v.Connect(bad); !errors.Is(err, ErrTokenInvalid) {
			t.Errorf("%s with another secret: %v", m.Alg(), err)
		}
	}
	// Without a secret, the empty one verifies nothing.
	none := NewVerifier(VerifierOptions{Keys: newKeys(t, KeySetOptions{DataDir: t.TempDir()})})
	empty, _ := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{}).SignedString([]byte{})
	if _, err := none.Connect(empty); !errors.Is(err, ErrTokenInvalid) {
		t.Errorf("no secret: %v", err)
	}
}

func TestKeyIDs(t *testing.T) {
	a, b := testKeys()["ES256"], testKeys()["EdDSA"]
	ks := newKeys(t, KeySetOptions{Keys: []KeyOptions{
		{ID: "a", File: writeFile(t, pkixPEM(t, a))}, {File: writeFile(t, pkixPEM(t, b))}}})
	v := NewVerifier(VerifierOptions{Keys: ks})
	tests := []struct {
		name, alg string
		kid       any
		ok        bool
	}{
		{"its id", "ES256", "a", true},
		{"another id than the configured", "ES256", "z", false},
		{"id of the other key", "EdDSA", "a", false},
		{"none", "ES256", nil, true},
		{"none, second", "EdDSA", nil, true},
		{"any id for a key without", "EdDSA", "whatever", true},
		{"thumbprint", "EdDSA", ks.keys[1].kid, true},
		{"number", "ES256", 1, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tok := jwt.NewWithClaims(jwt.GetSigningMethod(tt.alg), jwt.MapClaims{})
			if tt.kid != nil {
				tok.Header["kid"] = tt.kid
			}
			s, _ := tok.SignedString(testKeys()[tt.alg])
			if _, err := v.Connect(s); (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestCheap(t *testing.T) {
	v := newHMAC(t, VerifierOptions{})
	tests := map[string]struct {
		token string
		want  bool
	}{
		"hmac":       {hs(t, jwt.MapClaims{}), true},
		"rsa":        {rawURL.EncodeToString([]byte(`{"alg":"RS256"}`)) + ".e30.AAAA", false},
		"junk":       {"junk", true},
		"junk parts": {"a.b.c", true},
		"none":       {rawURL.EncodeToString([]byte(`{"alg":"none"}`)) + ".e30.", true},
		"large":      {hs(t, jwt.MapClaims{"info": strings.Repeat("x", maxCheapToken)}), false},
	}
	for name, tt := range tests {
		if got := v.Cheap(tt.token); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	token := hs(t, jwt.MapClaims{"sub": "alice"})
	if n := testing.AllocsPerRun(100, func() { v.Cheap(token) }); n > 0 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}
}

// TestNothingAliasesToken: the token may stand in a network buffer.
func TestNothingAliasesToken(t *testing.T) {
	v := newHMAC(t, VerifierOptions{})
	payload := `{"sub":"alice","jti":"jjj","sid":"sss","info":{"x":1},"meta":{"y":2},"channels":["one"],"subs":{"two":{"data":"d"}}}`
	first, err := v.Connect(hsRaw(t, hsHeader, payload))
	if err != nil {
		t.Fatal(err)
	}
	before, _ := json.Marshal(first)
	for range 50 { // uses the pooled buffers again
		if _, err := v.Connect(hsRaw(t, hsHeader, strings.NewReplacer("alice", "mallo", "x", "z", "y", "w", "one", "two").Replace(payload))); err != nil {
			t.Fatal(err)
		}
	}
	if after, _ := json.Marshal(first); string(after) != string(before) {
		t.Errorf("claims changed: %s", after)
	}
}

func TestVerifierConcurrent(t *testing.T) {
	v := newHMAC(t, VerifierOptions{})
	var wg sync.WaitGroup
	for g := range 8 {
		token := hs(t, jwt.MapClaims{"sub": fmt.Sprint(g)})
		wg.Go(func() {
			for range 300 {
				if c, err := v.Connect(token); err != nil || c.Subject != fmt.Sprint(g) {
					t.Errorf("got %v, %v", c, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// FuzzFastPath compares the HMAC path with golang-jwt: whatever header and
// payload say, and whether they are signed or only the fuzzer's bytes.
func FuzzFastPath(f *testing.F) {
	f.Add(hsHeader, `{"sub":"alice","exp":9999999999}`, []byte(nil), true)
	f.Add(`{"alg":"HS512","kid":"x"}`, `{"channels":["a"]}`, []byte("x"), true)
	f.Add(`{"alg":"none"}`, `{}`, []byte("."), false)
	f.Add(`{"ALG":"HS256"}`, `{"info":"\ud800"}`, []byte("\n"), true)
	v := newHMAC(f, VerifierOptions{Now: func() time.Time { return time.Unix(1, 0) }})
	parser := jwt.NewParser(jwt.WithValidMethods([]string{"HS256", "HS384", "HS512"}),
		jwt.WithStrictDecoding(), jwt.WithoutClaimsValidation())
	f.Fuzz(func(t *testing.T, head, payload string, noise []byte, signed bool) {
		text := rawURL.EncodeToString([]byte(head)) + "." + rawURL.EncodeToString([]byte(payload))
		method := jwt.SigningMethodHS256
		switch {
		case strings.Contains(head, "HS384"):
			method = jwt.SigningMethodHS384
		case strings.Contains(head, "HS512"):
			method = jwt.SigningMethodHS512
		}
		sig, _ := method.Sign(text, []byte(testSecret))
		if !signed {
			sig = noise
		}
		token := text + "." + rawURL.EncodeToString(sig)
		if len(noise) > 1 { // also what no encoder writes
			at := int(noise[0]) % len(token)
			token = token[:at] + string(noise[1:2]) + token[at+1:]
		}
		s := v.scratch.Get().(*scratch)
		defer v.release(s)
		got, err := v.signed(s, token)

		var p payloadOf
		_, refErr := parser.ParseWithClaims(token, &p, func(*jwt.Token) (any, error) { return []byte(testSecret), nil })
		// encoding/json sets nothing for null, and gives values without their space.
		if err == nil && validJSON(got) && jsonTrim(got) != "null" && (refErr != nil || jsonTrim(got) != string(p.raw)) {
			t.Fatalf("accepted %q (%q), golang-jwt: %v (%q)", token, got, refErr, p.raw)
		}
		// What golang-jwt takes and we do not must be of our own stricter rules.
		if err != nil && refErr == nil && !stricter(token) {
			t.Fatalf("refused %q (%v), golang-jwt takes it", token, err)
		}
		// Whatever it is, no path panics.
		v.Connect(token)
		v.Subscription(token)
		v.Cheap(token)
	})
}

// jsonTrim cuts off what JSON calls space.
func jsonTrim(b []byte) string { return strings.Trim(string(b), " \t\r\n") }

// stricter tells the tokens that only we refuse: line ends inside, large ones,
// headers that say something twice, name extensions, are not UTF-8, or whose
// kid is not a string.
func stricter(token string) bool {
	head, _, _ := strings.Cut(token, ".")
	if len(token) > maxToken || len(head) > maxHeader || strings.ContainsAny(token, "\r\n") {
		return true
	}
	raw, err := rawURL.DecodeString(head)
	if err != nil {
		return false
	}
	if !validJSON(raw) {
		return true
	}
	seen := make(map[string]int)
	m, _ := walkObject(raw)
	for {
		name, _, ok := m.next()
		if !ok {
			break
		}
		seen[string(name)]++
	}
	return seen["crit"] > 0 || seen["alg"] > 1 || seen["kid"] > 1
}

// FuzzClaims compares the claims decoder with encoding/json.
func FuzzClaims(f *testing.F) {
	f.Add(`{"sub":"a","exp":1.5,"channels":["x"],"subs":{"a":{"data":1}},"info":[{}]}`)
	f.Add(`{"a":"\\\"}","sub":"b","meta":{"x":"{"},"aud":["p"]}`)
	f.Add(` { "\u0073ub" : "\ud83d\ude00" , "expire_at" : 0 } `)
	f.Add(`{"subs":{"a":{"override":{"presence":{"value":true},"recover":{"value":false},"position":null}}}}`)
	f.Fuzz(func(t *testing.T, payload string) {
		var fl fields
		if !validJSON([]byte(payload)) || fl.decode([]byte(payload)) != nil {
			return
		}
		var ref map[string]json.RawMessage
		if err := json.Unmarshal([]byte(payload), &ref); err != nil {
			t.Fatalf("encoding/json refuses %q: %v", payload, err)
		}
		fl.audience("x")
		c, err := fl.connect()
		if err != nil {
			return
		}
		var sub string
		json.Unmarshal(ref["sub"], &sub)
		if c.Subject != sub {
			t.Fatalf("sub %q, want %q", c.Subject, sub)
		}
		var names []string
		json.Unmarshal(ref["channels"], &names)
		if len(names) != len(c.Channels) || len(names) > 0 && !reflect.DeepEqual(names, c.Channels) {
			t.Fatalf("channels %q, want %q", c.Channels, names)
		}
		for _, b := range [][]byte{c.Meta} {
			if b != nil && !json.Valid(b) {
				t.Fatalf("not JSON: %q", b)
			}
		}
		var subs map[string]json.RawMessage
		json.Unmarshal(ref["subs"], &subs)
		if len(subs) != len(c.Subs) {
			t.Fatalf("subs %v, want %v", c.Subs, subs)
		}
	})
}

func BenchmarkVerifyHMAC(b *testing.B) {
	v := newHMAC(b, VerifierOptions{Revoked: func(string, string) bool { return false }})
	token := hs(b, jwt.MapClaims{"sub": "device-000123", "exp": 9999999999, "iat": 1700000000, "jti": "5HhnKzV0Qe2sX0b8uYw1Zg"})
	b.Run("perch", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := v.Connect(token); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("cheap", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			v.Cheap(token)
		}
	})
	b.Run("golang-jwt", func(b *testing.B) {
		b.ReportAllocs()
		p := jwt.NewParser()
		for b.Loop() {
			if _, err := p.ParseWithClaims(token, &jwt.RegisteredClaims{}, func(*jwt.Token) (any, error) { return []byte(testSecret), nil }); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("floor", func(b *testing.B) { // the hash alone
		mac := hmac.New(sha256.New, []byte(testSecret))
		text := []byte(token[:strings.LastIndexByte(token, '.')])
		var sum [32]byte
		for b.Loop() {
			mac.Reset()
			mac.Write(text)
			mac.Sum(sum[:0])
		}
	})
}
