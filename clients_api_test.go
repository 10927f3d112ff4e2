package perch_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"perch"
)

// TestClientsAPI: what the endpoints of the registry answer.
func TestClientsAPI(t *testing.T) {
	s := start(t, func(o *perch.Options) {
		o.Engine, o.NATS.Sync = perch.EngineNATS, "1s"
		o.Auth.Clients = []perch.ClientOptions{{ID: "mine", SecretHash: hashOf(t, "sesame"), Channels: []string{"news"}}, {ID: "odd/id", SecretHash: hashOf(t, "x")}}
	})
	s.newClient(t, `{"id":"one"}`)
	long := strings.Repeat("x", 200)
	for _, tt := range []struct {
		name, method, path, body string
		status                   int
		want                     string
	}{
		{"an id and all else", "POST", "", `{"id":"a.b:c@d+e~f-g_h","user":"u","any_user":true,"channels":["news"],"token_ttl":60,"refresh_ttl":-1,"metadata":{"a":[1]},"disabled":true}`, 201,
			`"user":"u","any_user":true,"channels":["news"],"token_ttl":60,"refresh_ttl":-1,"metadata":{"a":[1]},"disabled":true`},
		{"no body", "POST", "", ``, 201, `"secret":"`},
		{"taken", "POST", "", `{"id":"one"}`, 409, `taken`},
		{"configured", "POST", "", `{"id":"mine"}`, 409, `auth.clients`},
		{"an empty id", "POST", "", `{"id":""}`, 400, `"field":"id"`},
		{"a bad id", "POST", "", `{"id":"-a"}`, 400, `"field":"id"`},
		{"a long id", "POST", "", `{"id":"` + long + `"}`, 400, `"field":"id"`},
		{"an id of a wrong type", "POST", "", `{"id":5}`, 400, `"field":"id"`},
		{"a short secret", "POST", "", `{"secret":"1234567"}`, 400, `"field":"secret"`},
		{"a secret that is not ASCII", "POST", "", `{"secret":"pässword"}`, 400, `"field":"secret"`},
		{"two secrets", "POST", "", `{"secret":"12345678","rotate_secret":true}`, 400, `"field":"secret"`},
		{"a bad user", "POST", "", `{"user":"a\nb"}`, 400, `"field":"user"`},
		{"a long user", "POST", "", `{"user":"` + long + long + `"}`, 400, `"field":"user"`},
		{"a topic of no namespace", "POST", "", `{"channels":["news","x:y"]}`, 400, `"message":"channels[1]: the namespace of \"x:y\" is not in topics.namespaces","field":"channels[1]"`},
		{"a topic without a name", "POST", "", `{"channels":[""]}`, 400, `"message":"channels[0]: \"\" is empty, longer than`},
		{"too many topics", "POST", "", `{"channels":[` + strings.Repeat(`"a",`, 128) + `"a"]}`, 400, `"field":"channels"`},
		{"a life below zero", "POST", "", `{"token_ttl":-1}`, 400, `"field":"token_ttl"`},
		{"a life too long", "POST", "", `{"token_ttl":99999999999}`, 400, `"field":"token_ttl"`},
		{"a life out of range", "POST", "", `{"token_ttl":1e30}`, 400, `"field":"token_ttl"`},
		{"a refresh token shorter than its access token", "POST", "", `{"token_ttl":60,"refresh_ttl":59}`, 400, `"field":"refresh_ttl"`},
		{"metadata that is no object", "POST", "", `{"metadata":"x"}`, 400, `"field":"metadata"`},
		{"too much metadata", "POST", "", `{"metadata":{"x":"` + strings.Repeat("x", 8<<10) + `"}}`, 400, `"field":"metadata"`},
		{"a misspelt field", "POST", "", `{"any_users":true}`, 400, `"field":"any_users"`},
		{"a list", "POST", "", `[]`, 400, `not a JSON object`},
		{"null", "POST", "", `null`, 400, `not a JSON object`},
		{"two objects", "POST", "", `{}{}`, 400, `not a JSON object`},
		{"no JSON", "POST", "", `{`, 400, `not a JSON object`},
		{"too big", "POST", "", `{"metadata":{"x":"` + strings.Repeat("x", 64<<10) + `"}}`, 413, `over 65536 bytes`},
		{"show", "GET", "/one", "", 200, `"source":"registry"`},
		{"show a configured one", "GET", "/mine", "", 200, `"source":"configuration","user":"mine","any_user":false,"channels":["news"]`},
		{"show one with a slash", "GET", "/odd%2Fid", "", 200, `"id":"odd/id"`},
		{"show nobody", "GET", "/nobody", "", 404, `unknown client`},
		{"show what can't be an id", "GET", "/%00", "", 404, `unknown client`},
		{"change", "PATCH", "/one", `{"user":"u2","metadata":{"k":1}}`, 200, `"user":"u2","any_user":false,"channels":[],"metadata":{"k":1}`},
		{"leave as it is", "PATCH", "/one", `{}`, 200, `"user":"u2","any_user":false,"channels":[],"metadata":{"k":1}`},
		{"take metadata away", "PATCH", "/one", `{"metadata":null,"user":null}`, 200, `"user":"u2"`},
		{"change the id", "PATCH", "/one", `{"id":"two"}`, 400, `"field":"id"`},
		{"change nobody", "PATCH", "/nobody", `{}`, 404, `unknown client`},
		{"change a configured one", "PATCH", "/mine", `{}`, 409, `auth.clients`},
		{"delete nobody", "DELETE", "/nobody", "", 404, `unknown client`},
		{"delete a configured one", "DELETE", "/mine", "", 409, `auth.clients`},
		{"another method", "PUT", "/one", `{}`, 405, `error`},
		{"delete them all", "DELETE", "", ``, 405, `error`},
		{"a limit that is none", "GET", "?limit=x", "", 400, `"field":"limit"`},
		{"a limit of nothing", "GET", "?limit=0", "", 400, `"field":"limit"`},
		{"a limit too big", "GET", "?limit=1001", "", 400, `"field":"limit"`},
		{"a cursor that is none", "GET", "?cursor=%21", "", 400, `"field":"cursor"`},
		{"delete", "DELETE", "/one", "", 204, ``},
		{"delete again", "DELETE", "/one", "", 404, `unknown client`},
		{"create again", "POST", "", `{"id":"one"}`, 201, `"secret":"`},
	} {
		status, answer, _ := s.callClients(t, tt.method, tt.path, tt.body)
		if status != tt.status || !strings.Contains(answer, tt.want) {
			t.Errorf("%s: %d %s, want %d with %s", tt.name, status, answer, tt.status, tt.want)
		}
		if strings.Contains(answer, "secret_hash") || strings.Contains(answer, "argon") {
			t.Errorf("%s: a hash: %s", tt.name, answer)
		}
	}
	if got := s.metric(t, `perch_api_requests_total{code="409",method="clients"}`); got == 0 {
		t.Error("refusals are not counted")
	}

	req, _ := http.NewRequest(http.MethodGet, "http://"+s.admin+"/api/clients", nil)
	if status, answer := do(t, req); status != http.StatusUnauthorized {
		t.Errorf("without a key: %d %s", status, answer)
	}
	if status, answer := get(t, "http://"+s.public+"/api/clients"); status != http.StatusNotFound {
		t.Errorf("on the public port: %d %s", status, answer)
	}
	if answer := s.api(t, "info", "{}"); !strings.Contains(answer, "nodes") {
		t.Errorf("the methods beside it: %s", answer)
	}
}

// TestClientsMatch: If-Match holds a change to the client that was looked at.
func TestClientsMatch(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Engine, o.NATS.Sync = perch.EngineNATS, "1s" })
	c := s.newClient(t, `{"id":"one"}`)
	send := func(method, match, body string) (int, string) {
		req, _ := http.NewRequest(method, "http://"+s.admin+"/api/clients/one", strings.NewReader(body))
		req.Header.Set("X-API-Key", s.apiKey)
		req.Header.Set("If-Match", match)
		return do(t, req)
	}
	first := fmt.Sprintf(`"%d"`, c.Revision)
	if status, answer := send(http.MethodPatch, first, `{"user":"a"}`); status != http.StatusOK {
		t.Fatalf("as it was: %d %s", status, answer)
	}
	for _, method := range []string{http.MethodPatch, http.MethodDelete} {
		if status, answer := send(method, first, `{"user":"b"}`); status != http.StatusConflict {
			t.Errorf("%s as it was before: %d %s", method, status, answer)
		}
		if status, answer := send(method, `"x"`, `{}`); status != http.StatusBadRequest || !strings.Contains(answer, "If-Match") {
			t.Errorf("%s: no ETag: %d %s", method, status, answer)
		}
	}
	if _, _, now := s.callClients(t, http.MethodGet, "/one", ""); now.User != "a" {
		t.Errorf("%+v", now)
	}
	if status, _ := send(http.MethodDelete, "*", ``); status != http.StatusNoContent {
		t.Errorf("delete whatever it is: %d", status)
	}
}

// TestClientsPages: the pages have all clients, of the registry and of the
// configuration, once and in one order.
func TestClientsPages(t *testing.T) {
	var want []string
	s := start(t, func(o *perch.Options) {
		o.Engine, o.NATS.Sync = perch.EngineNATS, "1s"
		for _, id := range []string{"a", "m-05", "m-99", "z"} {
			o.Auth.Clients = append(o.Auth.Clients, perch.ClientOptions{ID: id, SecretHash: hashOf(t, "x")})
			want = append(want, id)
		}
	})
	for i := range 23 {
		if id := fmt.Sprintf("m-%02d", i); i != 5 {
			s.newClient(t, `{"id":"`+id+`"}`)
			want = append(want, id)
		}
	}
	slices.Sort(want)
	for _, limit := range []int{1000, 26, 10, 3, 1} {
		var got []string
		for cursor := ""; ; {
			_, answer, _ := s.callClients(t, http.MethodGet, fmt.Sprintf("?limit=%d&cursor=%s", limit, cursor), "")
			var page struct {
				Result struct {
					Clients []shownClient
					Cursor  string
				}
			}
			if err := json.Unmarshal([]byte(answer), &page); err != nil || len(page.Result.Clients) > limit {
				t.Fatalf("%s: %v", answer, err)
			}
			for _, c := range page.Result.Clients {
				got = append(got, c.ID)
			}
			if cursor = page.Result.Cursor; cursor == "" {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("limit %d: %v", limit, got)
		}
	}
}

// TestClientsWithoutRegistry: with engine memory each request is told what is
// needed.
func TestClientsWithoutRegistry(t *testing.T) {
	s := start(t, nil)
	for method, path := range map[string]string{"POST": "", "GET": "", "PATCH": "/x", "DELETE": "/x"} {
		if status, answer, _ := s.callClients(t, method, path, "{}"); status != http.StatusNotImplemented || !strings.Contains(answer, "engine: nats") {
			t.Errorf("%s: %d %s", method, status, answer)
		}
	}
}

// TestClientsMetadata: whatever metadata is taken can be read again, and its client
// works, changes and goes.
func TestClientsMetadata(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Engine, o.NATS.Sync = perch.EngineNATS, "1s" })
	for name, value := range map[string]string{
		"markup": strings.Repeat("<&>", 2700), "separators": strings.Repeat("\u2028", 2700), "escapes": strings.Repeat(`\u003c`, 1300),
	} {
		t.Run(name, func(t *testing.T) {
			meta := `{"k":"` + value + `"}`
			if status, answer, _ := s.callClients(t, "POST", "", `{"id":"`+name+`","metadata":`+meta+`}`); status != http.StatusCreated {
				t.Fatalf("create: %d %.200s", status, answer)
			}
			status, answer, _ := s.callClients(t, "GET", "/"+name, "")
			var got struct {
				Result struct {
					Metadata struct{ K string } `json:"metadata"`
				} `json:"result"`
			}
			if err := json.Unmarshal([]byte(answer), &got); err != nil || status != http.StatusOK {
				t.Fatalf("show: %d %v %.200s", status, err, answer)
			}
			var want string
			if err := json.Unmarshal([]byte(`"`+value+`"`), &want); err != nil || got.Result.Metadata.K != want {
				t.Errorf("another value: %.100q %v", got.Result.Metadata.K, err)
			}
			for _, method := range []string{"PATCH", "DELETE"} {
				if status, answer, _ := s.callClients(t, method, "/"+name, ""); status >= 300 {
					t.Errorf("%s: %d %.200s", method, status, answer)
				}
			}
		})
	}
	for name, body := range map[string]string{
		"a brace too many": `{"user":"u"}}`, "a bracket too many": `{"user":"u"}]`,
		"not UTF-8": "{\"metadata\":{\"a\":\"\xff\"}}", "a user not UTF-8": "{\"user\":\"a\xffb\"}",
	} {
		if status, answer, _ := s.callClients(t, "POST", "", body); status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
}
