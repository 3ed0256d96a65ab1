// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"weft.dev/weft/subnet/etcd"
)

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(string(b))
	return len(b), nil
}

func storeOf(a *agent) (*etcd.Store, error) { return etcd.New(storeOptions(a.o, a.log)) }

func request(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	return ask(t, h, http.MethodGet, path)
}

// ask is request with a method.
func ask(t *testing.T, h http.Handler, method, path string) (int, string) {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(method, path, nil))
	return rec.Code, rec.Body.String()
}
