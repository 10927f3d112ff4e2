package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
)

// authority makes certificates of its own.
type authority struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.issue("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// issue writes name.pem and name.key.
func (a *authority) issue(name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(name+".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	a.write(name+".key", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}))
	out, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return out, key
}

func (a *authority) write(name string, b []byte) string {
	a.t.Helper()
	file := a.file(name)
	if err := os.WriteFile(file, b, 0o600); err != nil {
		a.t.Fatal(err)
	}
	return file
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// TestSecured: a node comes to a cluster that wants to know who it is in each of
// the ways that there are, and not without.
func TestSecured(t *testing.T) {
	a := newAuthority(t)
	a.issue("server", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	a.issue("node", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	pair, err := tls.LoadX509KeyPair(a.file("server.pem"), a.file("server.key"))
	if err != nil {
		t.Fatal(err)
	}
	withTLS := func(o *server.Options) {
		o.TLS, o.TLSVerify = true, true
		o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}
	}

	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, _ := user.PublicKey()
	seed, _ := user.Seed()
	a.write("node.nk", seed)

	operator, _ := nkeys.CreateOperator()
	operatorKey, _ := operator.PublicKey()
	account, _ := nkeys.CreateAccount()
	accountKey, _ := account.PublicKey()
	claims := jwt.NewAccountClaims(accountKey)
	claims.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	accountJWT, err := claims.Encode(operator)
	if err != nil {
		t.Fatal(err)
	}
	system, _ := nkeys.CreateAccount()
	systemKey, _ := system.PublicKey()
	systemJWT, err := jwt.NewAccountClaims(systemKey).Encode(operator)
	if err != nil {
		t.Fatal(err)
	}
	userJWT, err := jwt.NewUserClaims(public).Encode(account)
	if err != nil {
		t.Fatal(err)
	}
	creds, err := jwt.FormatUserConfig(userJWT, seed)
	if err != nil {
		t.Fatal(err)
	}
	a.write("node.creds", creds)
	withJWT := func(o *server.Options) {
		resolver := &server.MemAccResolver{}
		if err := resolver.Store(accountKey, accountJWT); err != nil {
			t.Fatal(err)
		}
		if err := resolver.Store(systemKey, systemJWT); err != nil {
			t.Fatal(err)
		}
		o.TrustedKeys, o.AccountResolver, o.SystemAccount = []string{operatorKey}, resolver, systemKey
	}

	for name, tt := range map[string]struct {
		server func(*server.Options)
		node   Options
		wrong  Options
	}{
		"user":        {func(o *server.Options) { o.Username, o.Password = "u", "p" }, Options{User: "u", Password: "p"}, Options{User: "u", Password: "x"}},
		"token":       {func(o *server.Options) { o.Authorization = "tok" }, Options{Token: "tok"}, Options{Token: "nok"}},
		"nkey":        {func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: public}} }, Options{NKey: a.file("node.nk")}, Options{}},
		"credentials": {withJWT, Options{Credentials: a.file("node.creds")}, Options{}},
		"certificate": {withTLS, Options{TLS: TLSOptions{CA: a.file("ca.pem"), Cert: a.file("node.pem"), Key: a.file("node.key")}},
			Options{TLS: TLSOptions{CA: a.file("ca.pem")}}},
	} {
		t.Run(name, func(t *testing.T) {
			so := &server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true, MaxPayload: maxPayload}
			tt.server(so)
			s, err := server.NewServer(so)
			if err != nil {
				t.Fatal(err)
			}
			s.Start()
			t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
			if !s.ReadyForConnections(10 * time.Second) {
				t.Fatal("the server does not start")
			}
			tt.node.URL, tt.wrong.URL = s.ClientURL(), s.ClientURL()
			n := newNode(t, tt.node, news)
			if name == "credentials" {
				// The account of the claims is known once somebody asks for it.
				if acc, err := s.LookupAccount(accountKey); err != nil {
					t.Fatal(err)
				} else if err := acc.EnableJetStream(nil, nil); err != nil && !strings.Contains(err.Error(), "already enabled") {
					t.Fatal(err)
				}
			}
			n.waitReady().must("news:x", "1")
			n.got.wait(t, "news:x", 1)
			w, err := Open(tt.wrong)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			until(t, "refused", func() bool { return w.LastError() != nil })
			if w.Connected() {
				t.Error("connected without the right to")
			}
		})
	}
}

// TestFilesNamed: a file that is not there, or not what it should be, is named.
func TestFilesNamed(t *testing.T) {
	a := newAuthority(t)
	empty := a.write("empty", nil)
	for name, o := range map[string]Options{
		"credentials": {Credentials: a.file("none")},
		"nkey":        {NKey: empty},
		"ca":          {TLS: TLSOptions{CA: empty}},
		"no ca":       {TLS: TLSOptions{CA: a.file("none")}},
		"cert":        {TLS: TLSOptions{Cert: a.file("ca.pem"), Key: empty}},
	} {
		o.URL = "nats://127.0.0.1:1"
		l, err := Open(o)
		if err == nil {
			l.Close()
			t.Errorf("%s: no error", name)
			continue
		}
		if !strings.Contains(err.Error(), a.dir) && name != "cert" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestListen: the embedded server takes other nodes at its port, and only those
// that know what its own does.
func TestListen(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	a := newNode(t, Options{Name: "a", User: "u", Password: "p", Server: ServerOptions{Dir: t.TempDir(), Listen: addr}}, news).waitReady()
	b := newNode(t, Options{Name: "b", User: "u", Password: "p", URL: "nats://" + addr}, news).waitReady()
	a.must("news:x", "1")
	b.must("news:x", "2")
	for _, n := range []*node{a, b} {
		if all := n.got.wait(t, "news:x", 2); data(all) != "1 2" {
			t.Errorf("delivered: %s", data(all))
		}
	}
	w, err := Open(Options{Name: "w", User: "u", Password: "x", URL: "nats://" + addr})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	until(t, "refused", func() bool { return w.LastError() != nil })
	if w.Connected() {
		t.Error("connected with a wrong password")
	}
	if _, err := Open(Options{Name: "c", Server: ServerOptions{Dir: t.TempDir(), Listen: addr}}); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("a taken port: %v", err)
	}
}
